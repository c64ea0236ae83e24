//! What `krustlet run` was pointed at.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{
    defaults,
    manifest::{Bundle, SuppliedImage},
};

/// Makes a bundle of a manifest, a directory, a Wasm file or an image.
///
/// # Errors
///
/// Says what is wrong with the target and how to mend it.
pub(crate) fn resolve(target: &str, args: Vec<String>) -> Result<Bundle> {
    let path = Path::new(target);
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("wasm" | "wat") if path.is_file() => program(path, args),
        _ if path.exists() => {
            if !args.is_empty() {
                bail!("arguments after -- go to a program; with a manifest, set `args` in it");
            }
            Ok(Bundle::read(path)?)
        }
        Some("wasm" | "wat" | "yaml" | "yml" | "json") => {
            bail!("there is no file {target}")
        }
        _ => image(target, args),
    }
}

/// A file becomes a pod of one container that runs it once.
fn program(path: &Path, args: Vec<String>) -> Result<Bundle> {
    let path: PathBuf =
        path.canonicalize().with_context(|| format!("cannot read {}", path.display()))?;
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or("program");
    let reference = format!("localhost/{}:latest", label(stem));
    let mut bundle = single(label(stem), reference.clone(), args)?;
    bundle.supply(SuppliedImage { reference, path });
    Ok(bundle)
}

/// An image becomes a pod of one container that runs it once.
fn image(reference: &str, args: Vec<String>) -> Result<Bundle> {
    let last = reference.rsplit('/').next().unwrap_or(reference);
    let name = last.split([':', '@']).next().unwrap_or(last);
    if reference.starts_with(['.', '/']) || name.is_empty() {
        bail!("{reference:?} is neither a file nor an image reference");
    }
    single(label(name), reference.to_owned(), args)
}

fn single(name: String, image: String, args: Vec<String>) -> Result<Bundle> {
    let container = Container {
        name: name.clone(),
        image: Some(image),
        args: (!args.is_empty()).then_some(args),
        ..Container::default()
    };
    let spec = PodSpec {
        containers: vec![container],
        restart_policy: Some("Never".into()),
        ..PodSpec::default()
    };
    let metadata = ObjectMeta { name: Some(unique(&name)), ..ObjectMeta::default() };
    let mut pod = Pod { metadata, spec: Some(spec), ..Pod::default() };
    defaults::pod(&mut pod).map_err(anyhow::Error::msg)?;
    Ok(Bundle { pods: vec![pod], ..Bundle::default() })
}

/// A DNS label made of any text: at most 50 characters, so that a suffix fits.
fn label(text: &str) -> String {
    let label: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(50)
        .collect();
    let label = label.trim_matches('-');
    if label.is_empty() { "program".into() } else { label.to_owned() }
}

/// Appends five letters, as `generateName` does, so that the same file can be
/// run twice.
fn unique(name: &str) -> String {
    /// Kubernetes' alphabet: no vowels, nothing that reads as another.
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut random = RandomState::new().hash_one(name);
    let mut text = format!("{name}-");
    for _ in 0..5 {
        let count = LETTERS.len() as u64;
        #[expect(clippy::cast_possible_truncation, reason = "less than the alphabet's length")]
        text.push(char::from(LETTERS[(random % count) as usize]));
        random /= count;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wasm_file_becomes_a_pod_that_runs_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("My_Tool.wasm");
        std::fs::write(&path, "").unwrap();
        let bundle = resolve(path.to_str().unwrap(), vec!["-v".into()]).unwrap();
        let spec = bundle.pods[0].spec.as_ref().unwrap();
        assert_eq!(spec.restart_policy.as_deref(), Some("Never"));
        assert_eq!(spec.containers[0].name, "my-tool");
        assert_eq!(spec.containers[0].args, Some(vec!["-v".into()]));
        assert_eq!(bundle.images[0].reference, "localhost/my-tool:latest");
        assert!(bundle.pods[0].metadata.name.as_ref().unwrap().starts_with("my-tool-"));
    }

    #[test]
    fn anything_else_is_an_image() {
        let bundle = resolve("ghcr.io/org/tool:v1", Vec::new()).unwrap();
        let container = &bundle.pods[0].spec.as_ref().unwrap().containers[0];
        assert_eq!(container.image.as_deref(), Some("ghcr.io/org/tool:v1"));
        assert_eq!(container.name, "tool");
    }

    #[test]
    fn a_file_that_is_not_there_is_not_taken_for_an_image() {
        for target in ["missing.wasm", "missing.yaml", "./missing"] {
            assert!(resolve(target, Vec::new()).is_err(), "{target}");
        }
    }

    #[test]
    fn labels_are_dns_labels() {
        assert_eq!(label("_A.b_"), "a-b");
        assert_eq!(label("ü"), "program");
    }
}
