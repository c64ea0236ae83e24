//! Manifests as `krustlet run` takes them: YAML or JSON, several documents,
//! Pods with the ConfigMaps and Secrets they use.
//!
//! A field that Kubernetes does not know is an error with its path, as with
//! `kubectl apply`; what the API server would default is defaulted by
//! [`defaults`](super::defaults).

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{defaults, wishes::Wishes};

/// The largest manifest file in bytes; the API server's own limit is 3 MiB.
const MAX_FILE: u64 = 3 << 20;

/// What a set of manifests asks for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Bundle {
    /// Pods, defaulted.
    pub(crate) pods: Vec<Pod>,
    /// ConfigMaps, with a namespace each.
    pub(crate) config_maps: Vec<ConfigMap>,
    /// Secrets, with a namespace each and `stringData` merged into `data`.
    pub(crate) secrets: Vec<Secret>,
    /// Files that supply images.
    pub(crate) images: Vec<SuppliedImage>,
    /// What is asked of the agent besides, by the command line.
    #[serde(default)]
    pub(crate) wishes: Wishes,
}

/// An image that comes from a file and not from a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SuppliedImage {
    /// The reference as pods say it.
    pub(crate) reference: String,
    /// A `.wasm` or `.wat` file or the directory of an OCI layout; absolute.
    pub(crate) path: PathBuf,
}

/// Why manifests cannot be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path} is larger than {MAX_FILE} bytes")]
    TooLarge { path: PathBuf },
    #[error("{path} is not valid YAML: {why}")]
    Yaml { path: PathBuf, why: String },
    #[error("{path}, document {document}: {why}")]
    Document { path: PathBuf, document: usize, why: String },
    #[error(
        "{path} holds no pod: `krustlet run` takes manifests of kind Pod, with the ConfigMaps and Secrets they use"
    )]
    NoPod { path: PathBuf },
}

impl Bundle {
    /// Reads a file, or every `.yaml`, `.yml` and `.json` file of a directory
    /// in the order of their names.
    pub(crate) fn read(path: &Path) -> Result<Self, ManifestError> {
        let mut bundle = Self::default();
        if path.is_dir() {
            for file in manifests_in(path)? {
                bundle.add_file(&file)?;
            }
        } else {
            bundle.add_file(path)?;
        }
        if bundle.pods.is_empty() {
            return Err(ManifestError::NoPod { path: path.to_owned() });
        }
        Ok(bundle)
    }

    fn add_file(&mut self, path: &Path) -> Result<(), ManifestError> {
        let read = |source| ManifestError::Read { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(read)?.len() > MAX_FILE {
            return Err(ManifestError::TooLarge { path: path.to_owned() });
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).map_err(|error| {
            ManifestError::Yaml { path: path.to_owned(), why: error.to_string() }
        })?;
        for (index, document) in documents.into_iter().enumerate() {
            self.add(document).map_err(|why| ManifestError::Document {
                path: path.to_owned(),
                document: index + 1,
                why,
            })?;
        }
        let directory = path.parent().unwrap_or(Path::new("."));
        self.supply_images(directory);
        Ok(())
    }

    fn add(&mut self, document: Value) -> Result<(), String> {
        if document.is_null() {
            return Ok(());
        }
        let word = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default();
        match (word("apiVersion"), word("kind")) {
            ("v1", "Pod") => {
                let mut pod: Pod = strict(document)?;
                defaults::pod(&mut pod)?;
                self.pods.push(pod);
            }
            ("v1", "ConfigMap") => {
                let mut object: ConfigMap = strict(document)?;
                defaults::namespace(&mut object.metadata);
                self.config_maps.push(object);
            }
            ("v1", "Secret") => {
                let mut object: Secret = strict(document)?;
                defaults::secret(&mut object);
                self.secrets.push(object);
            }
            ("v1", "List") => {
                let items = document.get("items").and_then(Value::as_array).cloned();
                for item in items.unwrap_or_default() {
                    self.add(item)?;
                }
            }
            ("", _) | (_, "") => return Err("apiVersion and kind must be set".into()),
            (version, kind) => {
                return Err(format!(
                    "{version} {kind} cannot be run without a cluster; Pod, ConfigMap and Secret can"
                ));
            }
        }
        Ok(())
    }

    /// Finds a file beside the manifest for each image that has one.
    fn supply_images(&mut self, directory: &Path) {
        let mut references: Vec<_> = self.pods.iter().flat_map(images_of).collect();
        references.sort();
        references.dedup();
        for reference in references {
            if let Some(path) = beside(directory, &reference) {
                self.supply(SuppliedImage { reference, path });
            }
        }
    }

    /// Has a file supply an image; no registry is asked for it any more,
    /// whatever the pods' pull policy.
    pub(super) fn supply(&mut self, image: SuppliedImage) {
        for container in self.pods.iter_mut().flat_map(containers_of) {
            if container.image.as_ref() == Some(&image.reference) {
                container.image_pull_policy = Some("Never".into());
            }
        }
        self.images.retain(|known| known.reference != image.reference);
        self.images.push(image);
    }
}

/// All containers of a pod.
fn containers_of(pod: &mut Pod) -> impl Iterator<Item = &mut Container> {
    pod.spec
        .iter_mut()
        .flat_map(|spec| spec.init_containers.iter_mut().flatten().chain(&mut spec.containers))
}

/// The images a pod names.
fn images_of(pod: &Pod) -> Vec<String> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let init = spec.init_containers.iter().flatten();
    init.chain(&spec.containers).filter_map(|container| container.image.clone()).collect()
}

/// The documented rule: an image `…/NAME[:TAG]` is supplied by `NAME.wasm`,
/// `NAME.wat` or an OCI layout `NAME/` in the manifest's directory, in this
/// order. A reference by digest never is: a file cannot keep that promise.
fn beside(directory: &Path, reference: &str) -> Option<PathBuf> {
    if reference.contains('@') {
        return None;
    }
    let last = reference.rsplit('/').next()?;
    let name = last.split(':').next().filter(|name| !name.is_empty())?;
    [format!("{name}.wasm"), format!("{name}.wat"), name.to_owned()]
        .into_iter()
        .map(|file| directory.join(file))
        .find(|path| path.is_file() || path.join("oci-layout").is_file())
        .and_then(|path| path.canonicalize().ok())
}

fn manifests_in(directory: &Path) -> Result<Vec<PathBuf>, ManifestError> {
    let read = |source| ManifestError::Read { path: directory.to_owned(), source };
    let mut files = std::fs::read_dir(directory)
        .map_err(read)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(read)?;
    files.retain(|path| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("yaml" | "yml" | "json")) && path.is_file()
    });
    files.sort();
    Ok(files)
}

/// Reads an object; a field that its type does not have is an error.
fn strict<T: DeserializeOwned + Serialize>(document: Value) -> Result<T, String> {
    let object: T = serde_json::from_value(document.clone()).map_err(|error| error.to_string())?;
    let known = serde_json::to_value(&object).map_err(|error| error.to_string())?;
    match unknown_field(&document, &known, String::new()) {
        Some(path) => Err(format!("unknown field {path:?}")),
        None => Ok(object),
    }
}

/// The first field of `given` that did not survive being read. Empty lists,
/// maps and nulls may be dropped on the way and are not missed.
fn unknown_field(given: &Value, known: &Value, path: String) -> Option<String> {
    match (given, known) {
        (Value::Object(given), known) => given.iter().find_map(|(name, value)| {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            match known.get(name) {
                Some(known) => unknown_field(value, known, path),
                None if is_empty(value) => None,
                None => Some(path),
            }
        }),
        (Value::Array(given), Value::Array(known)) => {
            given.iter().zip(known).enumerate().find_map(|(index, (given, known))| {
                unknown_field(given, known, format!("{path}[{index}]"))
            })
        }
        _ => None,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(yaml: &str) -> Result<Bundle, ManifestError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pod.yaml");
        std::fs::write(&path, yaml).unwrap();
        Bundle::read(&path)
    }

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n  - {name: app, image: hello}\n";

    #[test]
    fn several_documents_make_one_bundle() {
        let read = bundle(&format!(
            "{POD}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\ndata: {{a: b}}\n---\n\
             apiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\nstringData: {{k: v}}\n---\n"
        ))
        .unwrap();
        assert_eq!(read.pods.len(), 1);
        assert_eq!(read.config_maps[0].metadata.namespace.as_deref(), Some("default"));
        assert_eq!(read.secrets[0].data.as_ref().unwrap()["k"].0, b"v");
    }

    #[test]
    fn an_unknown_field_is_named_with_its_path() {
        let error = bundle(&POD.replace("image: hello", "image: hello, comand: [x]")).unwrap_err();
        assert!(error.to_string().contains("spec.containers[0].comand"), "{error}");
    }

    #[test]
    fn kinds_that_need_a_cluster_are_named() {
        let error = bundle("apiVersion: apps/v1\nkind: Deployment\n").unwrap_err();
        assert!(error.to_string().contains("apps/v1 Deployment"), "{error}");
    }

    #[test]
    fn a_file_without_a_pod_is_refused() {
        let error = bundle("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n").unwrap_err();
        assert!(matches!(error, ManifestError::NoPod { .. }), "{error}");
    }

    #[test]
    fn broken_yaml_is_an_error_with_a_place() {
        let error = bundle("a: [1,\nb: }").unwrap_err();
        assert!(error.to_string().contains("not valid YAML"), "{error}");
    }

    #[test]
    fn no_registry_is_asked_for_an_image_that_a_file_supplies() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pod.yaml");
        std::fs::write(&path, POD).unwrap();
        let policy = || {
            let pod = Bundle::read(&path).unwrap().pods.remove(0);
            pod.spec.unwrap().containers.remove(0).image_pull_policy.unwrap()
        };
        assert_eq!(policy(), "Always");
        std::fs::write(directory.path().join("hello.wat"), "").unwrap();
        assert_eq!(policy(), "Never");
    }

    #[test]
    fn a_file_beside_the_manifest_supplies_its_image() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        std::fs::write(root.join("hello.wasm"), "").unwrap();
        for (reference, found) in [
            ("hello", true),
            ("hello:v1", true),
            ("ghcr.io/org/hello:v1", true),
            ("localhost:5000/hello", true),
            ("hello@sha256:0000", false),
            ("other", false),
        ] {
            let path = beside(&root, reference);
            assert_eq!(path, found.then(|| root.join("hello.wasm")), "{reference}");
        }
    }
}
