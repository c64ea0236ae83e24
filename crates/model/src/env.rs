//! The environment and the command line of a container.
//!
//! ```text
//! services < envFrom (in order) < env (in order; $(NAME) of all that came before)
//! ```
//!
//! Pure: whoever asks brings the objects that [`object_refs`] lists. What an
//! image brings of its own is put under the result by [`with_image`].

mod expand;
mod services;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Container, EnvVar, EnvVarSource, Pod, Secret, Service},
};

pub use self::{expand::expand, services::service_variables};
use crate::{
    downward::{self, DownwardError, Surroundings},
    objects::{self, ObjectRef, ObjectRefs},
};

/// Bytes of one variable, `NAME=value`, or one argument.
///
/// Linux refuses longer ones (`MAX_ARG_STRLEN`), so that no container has ever
/// been given one; here it keeps references that refer to references in bounds.
pub const MAX_STRING: usize = 128 * 1024;

/// Bytes of all variables, or of all arguments, of a container. Linux refuses
/// more (a quarter of the usual 8 MiB of stack).
pub const MAX_TOTAL: usize = 2 * 1024 * 1024;

/// What environments are made of.
#[derive(Clone, Copy, Debug)]
pub struct EnvSources<'a> {
    /// The config maps of the pod's namespace that were found, by name.
    pub config_maps: &'a BTreeMap<String, ConfigMap>,
    /// The secrets of the pod's namespace that were found, by name.
    pub secrets: &'a BTreeMap<String, Secret>,
    /// All services of the cluster, or at least those of the pod's namespace
    /// and `default`. Must have been read once; see `cluster`.
    pub services: &'a [Arc<Service>],
    /// What a pod may learn of itself.
    pub surroundings: Surroundings<'a>,
}

/// Why a container's environment or command line cannot be made. The message
/// is what stands next to `CreateContainerConfigError`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum EnvError {
    #[error("{object} not found")]
    NotFound { object: ObjectRef },

    #[error("couldn't find key {key} in ConfigMap {namespace}/{name}")]
    ConfigMapKey { key: String, namespace: String, name: String },

    #[error("couldn't find key {key} in Secret {namespace}/{name}")]
    SecretKey { key: String, namespace: String, name: String },

    #[error(transparent)]
    Downward(#[from] DownwardError),

    #[error("variable {name} has a source that this node does not offer")]
    Source { name: String },

    #[error("variable {name} from {object} is not UTF-8, which a WebAssembly program needs")]
    NotText { name: String, object: ObjectRef },

    #[error("{what} contains a NUL byte")]
    Nul { what: String },

    #[error("{what} is longer than {MAX_STRING} bytes")]
    TooLong { what: String },

    #[error("the {what} of the container are longer than {MAX_TOTAL} bytes together")]
    TooMuch { what: &'static str },
}

impl EnvError {
    /// Whether the container may get its environment later without a change
    /// of its pod. Kubelet goes on trying whatever the reason.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NotFound { .. }
            | Self::ConfigMapKey { .. }
            | Self::SecretKey { .. }
            | Self::NotText { .. }
            | Self::Nul { .. }
            | Self::TooLong { .. }
            | Self::TooMuch { .. } => true,
            Self::Downward(error) => error.is_transient(),
            Self::Source { .. } => false,
        }
    }

    /// The waiting reason of the container.
    ///
    /// Source: kubelet, `ErrCreateContainerConfig` in
    /// `pkg/kubelet/kuberuntime/kuberuntime_container.go`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        "CreateContainerConfigError"
    }
}

/// The config maps and secrets that [`environment`] needs for the containers
/// of a pod; see [`ObjectRefs`].
#[must_use]
pub fn object_refs(pod: &Pod) -> ObjectRefs {
    objects::of_environment(pod)
}

/// Makes a container's environment: names in the order in which they were
/// first set (`envFrom`, `env`, services), none twice.
///
/// Source: kubelet, `makeEnvironmentVariables` in `pkg/kubelet/kubelet_pods.go`.
///
/// # Errors
///
/// Something that is not optional is missing, or is not fit to be a variable.
pub fn environment(
    pod: &Pod,
    container: &Container,
    sources: &EnvSources<'_>,
) -> Result<Vec<(String, String)>, EnvError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let links = pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true);
    let services = service_variables(sources.services, namespace, links);
    let lookup = Lookup { pod, container, namespace, sources };

    let mut env = Variables::default();
    lookup.env_from(&mut env)?;
    for variable in container.env.iter().flatten() {
        if let Some(value) = lookup.value(variable, &env, &services)? {
            env.set(&variable.name, value)?;
        }
    }
    for (name, value) in services {
        if env.get(&name).is_none() {
            env.set(&name, value)?;
        }
    }
    Ok(env.list)
}

/// Puts a container's variables on top of those of its image (`NAME=value`)
/// and of `HOSTNAME`, which every container runtime sets.
#[must_use]
pub fn with_image(
    image: &[String],
    hostname: &str,
    env: Vec<(String, String)>,
) -> Vec<(String, String)> {
    let image = image.iter().filter_map(|line| line.split_once('='));
    let base = [("HOSTNAME", hostname)].into_iter().chain(image);
    let mut all: Vec<(String, String)> = Vec::new();
    let base = base.map(|(name, value)| (name.to_owned(), value.to_owned()));
    for (name, value) in base.chain(env) {
        match all.iter_mut().find(|(known, _)| *known == name) {
            Some(known) => known.1 = value,
            None => all.push((name, value)),
        }
    }
    all
}

/// The name that a pod calls itself: its own, cut to 63 characters, or the one
/// its spec sets; on the host's network the node's.
///
/// Source: kubelet, `GeneratePodHostNameAndDomain` in
/// `pkg/kubelet/kubelet_pods.go`.
#[must_use]
pub fn hostname(pod: &Pod, node: &str) -> String {
    let spec = pod.spec.as_ref();
    let set = |name: Option<&String>| name.filter(|name| !name.is_empty()).cloned();
    if let Some(name) = set(spec.and_then(|spec| spec.hostname_override.as_ref())) {
        return name;
    }
    if spec.and_then(|spec| spec.host_network).unwrap_or_default() {
        return node.to_owned();
    }
    let name = set(spec.and_then(|spec| spec.hostname.as_ref()))
        .or_else(|| pod.metadata.name.clone())
        .unwrap_or_default();
    // A label of the domain name system has at most 63 characters, and ends
    // in neither of these.
    let cut = &name[..name.floor_char_boundary(63)];
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// Makes a container's command line, the program's name first.
///
/// `command` takes the place of the image's entry point and drops its
/// arguments; `args` takes the place of the arguments. Only these two are
/// expanded, never what comes from the image. `env` is the result of
/// [`environment`]. For an image that names no entry point, pass the name that
/// the program is to be called by.
///
/// Source: kubelet, `ExpandContainerCommandAndArgs` in
/// `pkg/kubelet/container/helpers.go`, and the runtimes' rule for images.
///
/// # Errors
///
/// Too long, or with a NUL byte.
pub fn command_line(
    container: &Container,
    entrypoint: &[String],
    cmd: &[String],
    env: &[(String, String)],
) -> Result<Vec<String>, EnvError> {
    let known: BTreeMap<&str, &str> =
        env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let expanded = |texts: &[String]| -> Result<Vec<String>, EnvError> {
        texts
            .iter()
            .map(|text| {
                let lookup = |name: &str| known.get(name).copied();
                expand::expand_within(text, MAX_STRING, lookup)
                    .ok_or_else(|| EnvError::TooLong { what: "an argument".to_owned() })
            })
            .collect()
    };
    let command = container.command.as_deref().unwrap_or_default();
    let args = container.args.as_deref().unwrap_or_default();
    let mut line = if command.is_empty() { entrypoint.to_vec() } else { expanded(command)? };
    if !args.is_empty() {
        line.extend(expanded(args)?);
    } else if command.is_empty() {
        line.extend_from_slice(cmd);
    }
    if line.iter().any(|text| text.contains('\0')) {
        return Err(EnvError::Nul { what: "an argument".to_owned() });
    }
    if line.iter().map(String::len).sum::<usize>() > MAX_TOTAL {
        return Err(EnvError::TooMuch { what: "arguments" });
    }
    Ok(line)
}

/// Variables in the order in which they were first set.
#[derive(Debug, Default)]
struct Variables {
    list: Vec<(String, String)>,
    index: BTreeMap<String, usize>,
    bytes: usize,
}

impl Variables {
    fn get(&self, name: &str) -> Option<&str> {
        self.index.get(name).map(|index| self.list[*index].1.as_str())
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), EnvError> {
        let what = || format!("variable {name}");
        if value.contains('\0') {
            return Err(EnvError::Nul { what: what() });
        }
        // The sign between, and the zero behind.
        let bytes = name.len() + value.len() + 2;
        if bytes > MAX_STRING {
            return Err(EnvError::TooLong { what: what() });
        }
        if let Some(index) = self.index.get(name) {
            let old = &mut self.list[*index].1;
            self.bytes = self.bytes - old.len() + value.len();
            *old = value;
        } else {
            self.index.insert(name.to_owned(), self.list.len());
            self.list.push((name.to_owned(), value));
            self.bytes += bytes;
        }
        if self.bytes > MAX_TOTAL {
            return Err(EnvError::TooMuch { what: "variables" });
        }
        Ok(())
    }
}

/// Where values come from.
struct Lookup<'a> {
    pod: &'a Pod,
    container: &'a Container,
    namespace: &'a str,
    sources: &'a EnvSources<'a>,
}

impl Lookup<'_> {
    /// The object, `None` if it is missing and may be.
    fn config_map(&self, name: &str, optional: bool) -> Result<Option<&ConfigMap>, EnvError> {
        match self.sources.config_maps.get(name) {
            None if !optional => Err(EnvError::NotFound {
                object: ObjectRef::ConfigMap {
                    namespace: self.namespace.to_owned(),
                    name: name.to_owned(),
                },
            }),
            found => Ok(found),
        }
    }

    fn secret_ref(&self, name: &str) -> ObjectRef {
        ObjectRef::Secret { namespace: self.namespace.to_owned(), name: name.to_owned() }
    }

    /// The object, `None` if it is missing and may be.
    fn secret(&self, name: &str, optional: bool) -> Result<Option<&Secret>, EnvError> {
        match self.sources.secrets.get(name) {
            None if !optional => Err(EnvError::NotFound { object: self.secret_ref(name) }),
            found => Ok(found),
        }
    }

    fn text(&self, variable: &str, secret: &str, bytes: &ByteString) -> Result<String, EnvError> {
        String::from_utf8(bytes.0.clone()).map_err(|_| EnvError::NotText {
            name: variable.to_owned(),
            object: self.secret_ref(secret),
        })
    }

    fn env_from(&self, env: &mut Variables) -> Result<(), EnvError> {
        for from in self.container.env_from.iter().flatten() {
            let prefix = from.prefix.as_deref().unwrap_or_default();
            if let Some(source) = &from.config_map_ref {
                let found = self.config_map(&source.name, source.optional.unwrap_or_default())?;
                for (key, value) in found.into_iter().flat_map(|map| map.data.iter().flatten()) {
                    env.set(&format!("{prefix}{key}"), value.clone())?;
                }
            } else if let Some(source) = &from.secret_ref {
                let found = self.secret(&source.name, source.optional.unwrap_or_default())?;
                for (key, value) in found.into_iter().flat_map(|map| map.data.iter().flatten()) {
                    let name = format!("{prefix}{key}");
                    let value = self.text(&name, &source.name, value)?;
                    env.set(&name, value)?;
                }
            }
        }
        Ok(())
    }

    /// The value of one entry of `env`, `None` if it may be left out.
    fn value(
        &self,
        variable: &EnvVar,
        env: &Variables,
        services: &BTreeMap<String, String>,
    ) -> Result<Option<String>, EnvError> {
        let literal = variable.value.as_deref().unwrap_or_default();
        if !literal.is_empty() {
            let lookup = |name: &str| env.get(name).or(services.get(name).map(String::as_str));
            return expand::expand_within(literal, MAX_STRING, lookup)
                .map(Some)
                .ok_or_else(|| EnvError::TooLong { what: format!("variable {}", variable.name) });
        }
        match &variable.value_from {
            None => Ok(Some(String::new())),
            Some(source) => self.referred(&variable.name, source),
        }
    }

    fn referred(&self, variable: &str, source: &EnvVarSource) -> Result<Option<String>, EnvError> {
        let surroundings = &self.sources.surroundings;
        if let Some(selector) = &source.field_ref {
            return Ok(Some(downward::field(self.pod, selector, surroundings)?));
        }
        if let Some(selector) = &source.resource_field_ref {
            let container = Some(self.container);
            return Ok(Some(downward::resource(self.pod, container, selector, surroundings)?));
        }
        if let Some(selector) = &source.config_map_key_ref {
            let optional = selector.optional.unwrap_or_default();
            let Some(map) = self.config_map(&selector.name, optional)? else {
                return Ok(None);
            };
            return match map.data.as_ref().and_then(|data| data.get(&selector.key)) {
                Some(value) => Ok(Some(value.clone())),
                None if optional => Ok(None),
                None => Err(EnvError::ConfigMapKey {
                    key: selector.key.clone(),
                    namespace: self.namespace.to_owned(),
                    name: selector.name.clone(),
                }),
            };
        }
        if let Some(selector) = &source.secret_key_ref {
            let optional = selector.optional.unwrap_or_default();
            let Some(secret) = self.secret(&selector.name, optional)? else {
                return Ok(None);
            };
            return match secret.data.as_ref().and_then(|data| data.get(&selector.key)) {
                Some(value) => self.text(variable, &selector.name, value).map(Some),
                None if optional => Ok(None),
                None => Err(EnvError::SecretKey {
                    key: selector.key.clone(),
                    namespace: self.namespace.to_owned(),
                    name: selector.name.clone(),
                }),
            };
        }
        Err(EnvError::Source { name: variable.to_owned() })
    }
}
