//! Names that become parts of paths.

use k8s_openapi::api::core::v1::Pod;

use super::Rejection;
use crate::restarts;

/// The longest name of a file, in bytes; the API server allows no longer ones.
const MAX: usize = 253;

/// Checks that no name of the pod leads out of the directory it is put into.
/// The API server is stricter; this is for pods that come another way.
pub(super) fn check(pod: &Pod) -> Result<(), Rejection> {
    let metadata = &pod.metadata;
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let of_pod = [
        ("name", metadata.name.as_deref()),
        ("namespace", metadata.namespace.as_deref()),
        ("uid", metadata.uid.as_deref()),
    ];
    let of_pod = of_pod.into_iter().map(|(what, name)| (what, name.unwrap_or_default()));
    let of_containers =
        restarts::containers(pod).map(|(_, container)| ("container", container.name.as_str()));
    let of_volumes = volumes.map(|volume| ("volume", volume.name.as_str()));
    for (what, name) in of_pod.chain(of_containers).chain(of_volumes) {
        if !is_plain(name) {
            return Err(Rejection::new(
                "UnexpectedAdmissionError",
                format!("{name:?} cannot be the name of a pod's {what}"),
            ));
        }
    }
    Ok(())
}

fn is_plain(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    (1..=MAX).contains(&name.len()) && name.bytes().all(is_plain) && !name.starts_with('.')
}
