//! Limits of local storage: what a pod may have, what it has, and which limit
//! that exceeds. Looking, and ending the pod, is left to `worker/storage.rs`.
//!
//! Source: kubelet, `localStorageEviction` in
//! `pkg/kubelet/eviction/eviction_manager.go`; the sentences are from
//! `helpers.go` beside it.

use std::path::PathBuf;

use k8s_openapi::{
    api::core::v1::{Container, Pod},
    apimachinery::pkg::api::resource::Quantity,
};
use krustlet_model::{
    admission::is_static,
    observed::ContainerKind,
    quantity::{self, Amount, Notation},
    restarts,
};
use krustlet_volume::{UsageError, Volumes, disk_usage};

/// From this priority on a pod is critical. Source: `SystemCriticalPriority` in
/// `pkg/apis/scheduling/types.go`.
const CRITICAL: i32 = 2_000_000_000;

/// What a pod may have. Quantities are as the pod has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StorageLimits {
    /// Each emptyDir on disk with a `sizeLimit`.
    volumes: Vec<Limit>,
    /// All containers together, if any of them has a limit.
    total: Option<Limit>,
    /// Each container with a limit; init containers have none of their own.
    containers: Vec<Limit>,
    /// The volumes that count for `total`.
    counted: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Limit {
    /// Of what; nothing for `total`.
    name: String,
    bytes: u64,
    given: String,
}

impl Limit {
    /// `None` for 0, which is no limit, and for what cannot be read: the
    /// admission has refused that.
    fn new(name: &str, given: &Quantity) -> Option<Self> {
        let bytes = u64::try_from(quantity::bytes(given).ok()?).ok().filter(|&bytes| bytes > 0)?;
        Some(Self { name: name.to_owned(), bytes, given: given.0.clone() })
    }
}

fn of_container(container: &Container) -> Option<&Quantity> {
    container.resources.as_ref()?.limits.as_ref()?.get("ephemeral-storage")
}

/// Whether a pod is kept whatever it uses: by its priority, or since it is the
/// node's own, which nobody would make anew.
///
/// Source: kubelet, `IsCriticalPod` in `pkg/kubelet/types/pod_update.go`.
fn is_critical(pod: &Pod) -> bool {
    let priority = pod.spec.as_ref().and_then(|spec| spec.priority);
    is_static(pod) || priority.is_some_and(|priority| priority >= CRITICAL)
}

impl StorageLimits {
    /// The limits of a pod; `None` if it has none, so that nobody need look, and
    /// if it is critical: kubelet does not evict it (`evictPod`).
    pub(crate) fn of(pod: &Pod) -> Option<Self> {
        if is_critical(pod) {
            return None;
        }
        let spec = pod.spec.as_ref()?;
        let given = spec.volumes.iter().flatten();
        let (mut volumes, mut counted) = (Vec::new(), Vec::new());
        for volume in given {
            // The kernel keeps those in memory to their size.
            let on_disk = volume
                .empty_dir
                .as_ref()
                .filter(|source| source.medium.as_deref().unwrap_or_default().is_empty());
            if let Some(limit) = on_disk.and_then(|source| source.size_limit.as_ref()) {
                volumes.extend(Limit::new(&volume.name, limit));
            }
            if on_disk.is_some() || volume.config_map.is_some() {
                counted.push(volume.name.clone());
            }
        }
        let mut containers = Vec::new();
        // Source: `AggregateContainerLimits` and `PodLimits` in component-helpers,
        // `resource/helpers.go`. An init container runs beside the sidecars that
        // come before it.
        let (mut sum, mut largest) = (Amount::default(), Amount::default());
        for (kind, container) in restarts::containers(pod) {
            let Some(given) = of_container(container) else { continue };
            let Some(limit) = Limit::new(&container.name, given) else { continue };
            let amount = quantity::parse(given).unwrap_or_default();
            match kind {
                ContainerKind::Init => largest = largest.max(sum + amount),
                ContainerKind::App | ContainerKind::Sidecar => {
                    sum = sum + amount;
                    containers.push(limit);
                }
            }
        }
        let mut total = sum.max(largest);
        let overhead = spec.overhead.as_ref().and_then(|all| all.get("ephemeral-storage"));
        if let Some(overhead) = overhead.filter(|_| total > Amount::default()) {
            total = total + quantity::parse(overhead).unwrap_or_default();
        }
        let total = Limit::new("", &total.to_quantity(Notation::Binary));
        if volumes.is_empty() && total.is_none() {
            return None;
        }
        Some(Self { volumes, total, containers, counted })
    }
}

/// Where a pod's files are.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) volumes: Volumes,
    /// The directory of the pod's logs, with one for each container.
    pub(crate) logs: PathBuf,
}

/// The first limit that is exceeded, as kubelet says it. Blocks.
///
/// A tree that cannot be walked because of what is in it exceeds its limit: a
/// guest could hide in it whatever it likes.
///
/// # Errors
///
/// What the disk says.
pub(crate) fn exceeded(limits: &StorageLimits, places: &Places) -> std::io::Result<Option<String>> {
    for limit in &limits.volumes {
        if measured(places.volumes.used(&limit.name))? > limit.bytes {
            let Limit { name, given, .. } = limit;
            return Ok(Some(format!(
                "Usage of EmptyDir volume {name:?} exceeds the limit {given:?}. "
            )));
        }
    }
    let Some(total) = &limits.total else { return Ok(None) };
    let mut used = measured(disk_usage(&places.logs))?;
    for volume in &limits.counted {
        used = used.saturating_add(measured(places.volumes.used(volume))?);
    }
    if used > total.bytes {
        return Ok(Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            total.given,
        )));
    }
    for limit in &limits.containers {
        if measured(disk_usage(&places.logs.join(&limit.name)))? > limit.bytes {
            let Limit { name, given, .. } = limit;
            return Ok(Some(format!(
                "Container {name} exceeded its local ephemeral storage limit {given:?}. "
            )));
        }
    }
    Ok(None)
}

fn measured(used: Result<u64, UsageError>) -> std::io::Result<u64> {
    match used {
        Ok(bytes) => Ok(bytes),
        Err(UsageError::Disk(error)) => Err(error),
        Err(UsageError::TooDeep | UsageError::TooMany) => Ok(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use krustlet_volume::VolumeOwner;
    use serde_json::json;

    use super::*;

    fn limits(spec: serde_json::Value) -> Option<StorageLimits> {
        let pod = json!({"metadata": {"name": "p"}, "spec": spec});
        StorageLimits::of(&serde_json::from_value(pod).unwrap())
    }

    fn limited(storage: &str) -> serde_json::Value {
        json!({"limits": {"ephemeral-storage": storage}})
    }

    #[test]
    fn a_pod_without_limits_is_not_looked_at() {
        assert_eq!(
            limits(json!({
                "containers": [
                    {"name": "a", "resources": {"limits": {"cpu": "1"}}},
                    {"name": "b", "resources": limited("0")},
                ],
                "volumes": [
                    {"name": "a", "emptyDir": {}},
                    {"name": "b", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                ],
            })),
            None,
        );
    }

    #[test]
    fn a_critical_pod_is_not_evicted() {
        for (priority, counts) in [(CRITICAL, false), (CRITICAL - 1, true)] {
            let containers = json!([{"name": "a", "resources": limited("1Mi")}]);
            let limits = limits(json!({"priority": priority, "containers": containers}));
            assert_eq!(limits.is_some(), counts, "{priority}");
        }
    }

    #[test]
    fn a_pod_of_the_nodes_own_is_not_evicted() {
        for (source, counts) in [("file", false), ("api", true)] {
            let pod = json!({
                "metadata": {"name": "p", "annotations": {"kubernetes.io/config.source": source}},
                "spec": {"containers": [{"name": "a", "resources": limited("1Mi")}]},
            });
            let limits = StorageLimits::of(&serde_json::from_value(pod).unwrap());
            assert_eq!(limits.is_some(), counts, "{source}");
        }
    }

    #[test]
    fn the_total_is_of_all_containers_or_of_the_largest_init_container() {
        let total = |init: &str, late: &str, overhead: &str| {
            let limits = limits(json!({
                "overhead": {"ephemeral-storage": overhead},
                "initContainers": [
                    {"name": "i", "resources": limited(init)},
                    {"name": "s", "restartPolicy": "Always", "resources": limited("1Mi")},
                    {"name": "j", "resources": limited(late)},
                ],
                "containers": [{"name": "a", "resources": limited("2Mi")}, {"name": "b"}],
            }));
            let limits = limits.unwrap();
            assert_eq!(limits.containers.len(), 2);
            limits.total.unwrap().given
        };
        assert_eq!(total("1Mi", "1Mi", "0"), "3Mi");
        assert_eq!(total("8Mi", "1Mi", "0"), "8Mi");
        // With the sidecar that is there already.
        assert_eq!(total("8Mi", "8Mi", "0"), "9Mi");
        assert_eq!(total("1Mi", "1Mi", "2Mi"), "5Mi");
    }

    #[test]
    fn the_first_limit_that_is_exceeded_is_named() {
        let home = tempfile::tempdir().unwrap();
        let places = Places {
            volumes: Volumes::new(home.path(), VolumeOwner::current()),
            logs: home.path().join("logs"),
        };
        let limits = limits(json!({
            "containers": [
                {"name": "a", "resources": limited("1Mi")},
                {"name": "b", "resources": limited("4Mi")},
            ],
            "volumes": [
                {"name": "scratch", "emptyDir": {"sizeLimit": "2Mi"}},
                {"name": "free", "emptyDir": {}},
                {"name": "secret", "secret": {"secretName": "s"}},
            ],
        }))
        .unwrap();
        let grow = |path: &str, mib: usize| {
            let path = home.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![1; mib << 20]).unwrap();
        };
        let says = || exceeded(&limits, &places).unwrap().unwrap_or_default();
        assert_eq!(says(), "");
        grow("volumes/secret/file", 9);
        grow("volumes/free/file", 2);
        assert_eq!(says(), "");
        grow("logs/a/0.log", 2);
        assert_eq!(says(), "Container a exceeded its local ephemeral storage limit \"1Mi\". ");
        grow("logs/b/0.log", 2);
        assert_eq!(
            says(),
            "Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. ",
        );
        grow("volumes/scratch/file", 3);
        assert_eq!(says(), "Usage of EmptyDir volume \"scratch\" exceeds the limit \"2Mi\". ");
    }
}
