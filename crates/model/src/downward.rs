//! What a pod may learn of itself: `fieldRef` and `resourceFieldRef`, in
//! environment variables and in files.

use std::{collections::BTreeMap, fmt::Write, net::IpAddr};

use k8s_openapi::{
    api::core::v1::{Container, ObjectFieldSelector, Pod, ResourceFieldSelector},
    apimachinery::pkg::api::resource::Quantity,
};

use crate::{
    quantity::{self, Amount, QuantityError},
    restarts,
};

/// What is told of the pod that its object does not say.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// What the node has to give, `status.allocatable`; stands in for limits
    /// that a container does not have.
    pub allocatable: &'a BTreeMap<String, Quantity>,
    /// The pod's addresses, the node's family first.
    pub pod_ips: &'a [IpAddr],
    /// The node's addresses.
    pub host_ips: &'a [IpAddr],
}

/// Why a reference gives nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum DownwardError {
    #[error("unsupported pod version: {version}")]
    Version { version: String },

    #[error("unsupported fieldPath: {path}")]
    Field { path: String },

    #[error("unsupported container resource : {resource}")]
    Resource { resource: String },

    #[error("container {name} not found")]
    Container { name: String },

    #[error("the node's address is not known yet")]
    NoHostAddress,

    #[error(transparent)]
    Quantity(#[from] QuantityError),
}

impl DownwardError {
    /// Whether the same reference may give something later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoHostAddress => true,
            Self::Version { .. }
            | Self::Field { .. }
            | Self::Resource { .. }
            | Self::Container { .. }
            | Self::Quantity(_) => false,
        }
    }
}

/// The value of a `fieldRef`.
///
/// Addresses that are not known yet give an empty text, as with kubelet; the
/// node's own address is an error until it is known.
///
/// Source: kubelet, `podFieldSelectorRuntimeValue` in
/// `pkg/kubelet/kubelet_pods.go`, and `pkg/fieldpath/fieldpath.go`.
///
/// # Errors
///
/// The path names nothing that may be referred to.
pub fn field(
    pod: &Pod,
    selector: &ObjectFieldSelector,
    surroundings: &Surroundings<'_>,
) -> Result<String, DownwardError> {
    match selector.api_version.as_deref() {
        None | Some("" | "v1") => {}
        Some(version) => return Err(DownwardError::Version { version: version.to_owned() }),
    }
    let path = selector.field_path.as_str();
    let metadata = &pod.metadata;
    let spec = pod.spec.as_ref();
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.annotations" => metadata.annotations.as_ref(),
            "metadata.labels" => metadata.labels.as_ref(),
            _ => return Err(DownwardError::Field { path: path.to_owned() }),
        };
        return Ok(map.and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    Ok(match path {
        "metadata.name" => text(metadata.name.as_ref()),
        "metadata.namespace" => text(metadata.namespace.as_ref()),
        "metadata.uid" => text(metadata.uid.as_ref()),
        "metadata.labels" => lines(metadata.labels.as_ref()),
        "metadata.annotations" => lines(metadata.annotations.as_ref()),
        "spec.nodeName" | "spec.host" => text(spec.and_then(|spec| spec.node_name.as_ref())),
        "spec.serviceAccountName" => text(spec.and_then(|spec| spec.service_account_name.as_ref())),
        "status.hostIP" => first(surroundings.host_ips).ok_or(DownwardError::NoHostAddress)?,
        "status.hostIPs" if surroundings.host_ips.is_empty() => {
            return Err(DownwardError::NoHostAddress);
        }
        "status.hostIPs" => joined(surroundings.host_ips),
        "status.podIP" => first(surroundings.pod_ips).unwrap_or_default(),
        "status.podIPs" => joined(surroundings.pod_ips),
        _ => return Err(DownwardError::Field { path: path.to_owned() }),
    })
}

fn first(ips: &[IpAddr]) -> Option<String> {
    ips.first().map(ToString::to_string)
}

fn joined(ips: &[IpAddr]) -> String {
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Splits `metadata.labels['key']`.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, key) = path.strip_suffix("']")?.split_once("['")?;
    (!map.is_empty()).then_some((map, key))
}

/// Writes a map as `key="value"`, one line each, sorted.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<_> =
        map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quoted(value))).collect();
    lines.join("\n")
}

/// A text in quotes as Go writes it (`strconv.Quote`).
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            _ if is_printable(c) => out.push(c),
            _ => {
                let code = u32::from(c);
                // Writing to a String cannot fail.
                let _ = match code {
                    0..0x80 => write!(out, "\\x{code:02x}"),
                    0x80..0x1_0000 => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push('"');
    out
}

/// Whether a character is a letter, mark, number, sign or the space.
fn is_printable(c: char) -> bool {
    // `str::escape_debug` knows; a mark it escapes only where a text begins,
    // hence the letter in front.
    c == '\'' || ["a", c.encode_utf8(&mut [0; 4])].concat().escape_debug().nth(1) != Some('\\')
}

/// The value of a `resourceFieldRef`, in units of its divisor, rounded up.
///
/// `container` is the one that refers; the reference may name another one of
/// the pod. A limit that is not set is what the node has to give.
///
/// Source: `ExtractContainerResourceValue` and `MergeContainerResourceLimits`
/// in `pkg/api/v1/resource/helpers.go`, `defaultPodLimitsForDownwardAPI` in
/// `pkg/kubelet/kubelet_resources.go`.
///
/// # Errors
///
/// The reference names an unknown container or resource.
pub fn resource(
    pod: &Pod,
    container: Option<&Container>,
    selector: &ResourceFieldSelector,
    surroundings: &Surroundings<'_>,
) -> Result<String, DownwardError> {
    let container = match selector.container_name.as_deref() {
        None | Some("") => container,
        Some(name) => restarts::containers(pod)
            .map(|(_, container)| container)
            .find(|container| container.name == name),
    }
    .ok_or_else(|| DownwardError::Container {
        name: selector.container_name.clone().unwrap_or_default(),
    })?;

    let unsupported = || DownwardError::Resource { resource: selector.resource.clone() };
    let (list, name) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let is_limit = match list {
        "limits" => true,
        "requests" => false,
        _ => return Err(unsupported()),
    };
    let is_standard = matches!(name, "cpu" | "memory" | "ephemeral-storage");
    if !is_standard && !name.starts_with("hugepages-") {
        return Err(unsupported());
    }

    let resources = container.resources.as_ref();
    let set = if is_limit {
        resources.and_then(|all| all.limits.as_ref())
    } else {
        resources.and_then(|all| all.requests.as_ref())
    };
    let mut amount = read(set.and_then(|all| all.get(name)))?;
    if amount.is_zero() && is_limit && is_standard {
        amount = read(surroundings.allocatable.get(name))?;
    }

    let mut divisor = read(selector.divisor.as_ref())?;
    if divisor.is_zero() {
        divisor = Amount::whole(1);
    }
    let (number, by) = if name == "cpu" {
        (amount.milli(), divisor.milli())
    } else {
        (amount.value(), divisor.value())
    };
    // Neither is negative (the API server refuses that) nor is the divisor 0.
    Ok(number.unsigned_abs().div_ceil(by.unsigned_abs().max(1)).to_string())
}

fn read(quantity: Option<&Quantity>) -> Result<Amount, QuantityError> {
    quantity.map_or(Ok(Amount::default()), quantity::parse)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": "p", "namespace": "n", "uid": "u",
                "labels": {"b": "2", "a": "one \"line\"\n"},
                "annotations": {"example.org/x": "y"},
            },
            "spec": {
                "nodeName": "node", "serviceAccountName": "sa",
                "containers": [
                    {"name": "c", "resources": {"limits": {"cpu": "1500m"}, "requests": {"memory": "1Gi"}}},
                    {"name": "d", "resources": {"limits": {"memory": "64Mi"}}},
                ],
            },
        }))
        .unwrap()
    }

    fn allocatable() -> BTreeMap<String, Quantity> {
        [("cpu", "4"), ("memory", "8Gi")]
            .map(|(name, text)| (name.to_owned(), Quantity(text.to_owned())))
            .into()
    }

    fn get(path: &str) -> Result<String, DownwardError> {
        let selector = ObjectFieldSelector { api_version: None, field_path: path.to_owned() };
        let surroundings = Surroundings {
            allocatable: &BTreeMap::new(),
            pod_ips: &["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
            host_ips: &["192.0.2.1".parse().unwrap()],
        };
        field(&pod(), &selector, &surroundings)
    }

    #[test]
    fn every_field_that_may_be_named_is_found() {
        let table = [
            ("metadata.name", "p"),
            ("metadata.namespace", "n"),
            ("metadata.uid", "u"),
            ("metadata.labels", "a=\"one \\\"line\\\"\\n\"\nb=\"2\""),
            ("metadata.labels['b']", "2"),
            ("metadata.labels['none']", ""),
            ("metadata.annotations['example.org/x']", "y"),
            ("metadata.annotations", "example.org/x=\"y\""),
            ("spec.nodeName", "node"),
            ("spec.serviceAccountName", "sa"),
            ("status.hostIP", "192.0.2.1"),
            ("status.hostIPs", "192.0.2.1"),
            ("status.podIP", "10.0.0.7"),
            ("status.podIPs", "10.0.0.7,fd00::7"),
        ];
        for (path, value) in table {
            assert_eq!(get(path).as_deref(), Ok(value), "{path}");
        }
        for path in ["metadata.foo", "spec.restartPolicy", "spec.x['y']", "", "['a']"] {
            assert_eq!(get(path), Err(DownwardError::Field { path: path.to_owned() }));
        }
    }

    #[test]
    fn quotes_are_gos() {
        let table = [
            ("it's", "\"it's\""),
            ("\u{1}\u{7f}\x07", "\"\\x01\\x7f\\a\""),
            ("é\u{301}日\u{200b}", "\"é\u{301}日\\u200b\""),
            ("\u{a0}\u{e0001}", "\"\\u00a0\\U000e0001\""),
        ];
        for (text, quotes) in table {
            assert_eq!(quoted(text), quotes);
        }
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let pod = pod();
        let allocatable = allocatable();
        let surroundings = Surroundings { allocatable: &allocatable, pod_ips: &[], host_ips: &[] };
        let get = |container: &str, name: &str, divisor: &str| {
            let selector = ResourceFieldSelector {
                container_name: Some(container.to_owned()),
                divisor: Some(Quantity(divisor.to_owned())),
                resource: name.to_owned(),
            };
            resource(&pod, None, &selector, &surroundings)
        };
        let table = [
            ("c", "limits.cpu", "0", "2"),
            ("c", "limits.cpu", "1m", "1500"),
            ("c", "limits.memory", "1Gi", "8"),
            ("c", "requests.memory", "1Mi", "1024"),
            ("c", "requests.cpu", "1", "0"),
            ("d", "limits.cpu", "1", "4"),
            ("d", "limits.memory", "1", "67108864"),
            ("d", "limits.memory", "100M", "1"),
            ("d", "limits.ephemeral-storage", "1", "0"),
        ];
        for (container, name, divisor, value) in table {
            assert_eq!(get(container, name, divisor).as_deref(), Ok(value), "{container} {name}");
        }
        assert!(get("x", "limits.cpu", "1").is_err());
        assert!(get("c", "limits.gpu", "1").is_err());
        assert!(get("c", "cpu", "1").is_err());
    }
}
