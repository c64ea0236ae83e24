//! Changing what the containers of a running pod may use.
//!
//! ```text
//! wanted (the source's) ──there is room──▶ allotted ──told to the sandbox──▶ actual
//!            └────── none: PodResizePending       └── under way: PodResizeInProgress
//! ```
//!
//! As for kubelet, what is wanted is taken whole or not at all, and until then
//! everything goes by what was allotted before. Whether there is room is said by
//! [`admission`](crate::admission::room_for_resize); telling sandboxes is left
//! to `pod`.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{Container, Pod, ResourceRequirements},
    apimachinery::pkg::api::resource::Quantity,
};
use serde::{Deserialize, Serialize};

use crate::{observed::ContainerKind, quantity, restarts};

/// What one container may use, by the names of resources; quantities are as the
/// source writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerResources {
    /// `resources.limits`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, String>,
    /// `resources.requests`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub requests: BTreeMap<String, String>,
}

impl ContainerResources {
    /// Those that a container's spec names.
    #[must_use]
    pub fn of(container: &Container) -> Self {
        let resources = container.resources.as_ref();
        Self {
            limits: texts(resources.and_then(|all| all.limits.as_ref())),
            requests: texts(resources.and_then(|all| all.requests.as_ref())),
        }
    }

    /// Whether both come to the same, however it is written.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let lists = [&self.limits, &self.requests, &other.limits, &other.requests];
        let names: BTreeSet<_> = lists.into_iter().flat_map(BTreeMap::keys).collect();
        names.into_iter().all(|name| self.is_same_of(other, name))
    }

    /// Whether both come to the same for one resource.
    fn is_same_of(&self, other: &Self, name: &str) -> bool {
        is_same_amount(self.limits.get(name), other.limits.get(name))
            && is_same_amount(self.requests.get(name), other.requests.get(name))
    }

    /// In the API's words.
    #[must_use]
    pub fn to_requirements(&self) -> ResourceRequirements {
        let quantities = |list: &BTreeMap<String, String>| {
            let list: BTreeMap<_, _> =
                list.iter().map(|(name, text)| (name.clone(), Quantity(text.clone()))).collect();
            (!list.is_empty()).then_some(list)
        };
        ResourceRequirements {
            claims: None,
            limits: quantities(&self.limits),
            requests: quantities(&self.requests),
        }
    }
}

fn texts(list: Option<&BTreeMap<String, Quantity>>) -> BTreeMap<String, String> {
    list.into_iter().flatten().map(|(name, text)| (name.clone(), text.0.clone())).collect()
}

fn is_same_amount(one: Option<&String>, other: Option<&String>) -> bool {
    let (Some(one), Some(other)) = (one, other) else { return one == other };
    let amount = |text: &String| quantity::parse(&Quantity(text.clone()));
    one == other || matches!((amount(one), amount(other)), (Ok(one), Ok(other)) if one == other)
}

/// Whether the containers of a pod are to have other resources than they had.
#[must_use]
pub fn is_resized(old: &Pod, new: &Pod) -> bool {
    restarts::containers(new).any(|(_, container)| {
        let before = restarts::containers(old).find(|(_, before)| before.name == container.name);
        before.is_some_and(|(_, before)| {
            // Mostly they are written alike; to read quantities takes longer.
            before.resources != container.resources
                && !ContainerResources::of(before).is_same(&ContainerResources::of(container))
        })
    })
}

/// A pod as it is wanted, but for its resources: those stay what they were
/// allotted in `old`.
#[must_use]
pub fn keep_resources(wanted: &Pod, old: &Pod) -> Pod {
    let mut kept = wanted.clone();
    let Some(spec) = &mut kept.spec else { return kept };
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        let before = restarts::containers(old).find(|(_, before)| before.name == container.name);
        if let Some((_, before)) = before {
            container.resources.clone_from(&before.resources);
        }
    }
    kept
}

/// Whether a container has to be run again to get what it is allotted, because
/// its `resizePolicy` says so of a resource that changes.
///
/// Source: kubelet, `computePodResizeAction` in
/// `pkg/kubelet/kuberuntime/kuberuntime_manager.go`.
#[must_use]
pub fn needs_restart(
    kind: ContainerKind,
    container: &Container,
    actual: &ContainerResources,
) -> bool {
    let allotted = ContainerResources::of(container);
    // An init container is not run twice.
    kind != ContainerKind::Init
        && container.resize_policy.iter().flatten().any(|policy| {
            policy.restart_policy == "RestartContainer"
                && !actual.is_same_of(&allotted, &policy.resource_name)
        })
}

/// What an event says of a pod's resources: one line of JSON.
///
/// Source: kubelet, `makeResourceSummaryFromSpec` in `pkg/kubelet/events/resize.go`.
#[must_use]
pub fn summary(pod: &Pod, error: Option<&str>) -> String {
    #[derive(Serialize)]
    struct Of<'a> {
        name: &'a str,
        resources: ContainerResources,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Summary<'a> {
        #[serde(skip_serializing_if = "Vec::is_empty")]
        init_containers: Vec<Of<'a>>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        containers: Vec<Of<'a>>,
        generation: i64,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<&'a str>,
    }
    let of = |is_wanted: fn(ContainerKind) -> bool| {
        restarts::containers(pod)
            .filter(|(kind, _)| is_wanted(*kind))
            .map(|(_, container)| Of {
                name: &container.name,
                resources: ContainerResources::of(container),
            })
            .collect()
    };
    let summary = Summary {
        init_containers: of(|kind| kind != ContainerKind::App),
        containers: of(|kind| kind == ContainerKind::App),
        generation: pod.metadata.generation.unwrap_or_default(),
        error,
    };
    // Plain values always have a form in JSON.
    serde_json::to_string(&summary).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn pod(resources: &Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "generation": 3},
            "spec": {
                "nodeName": "n",
                "containers": [{"name": "c", "resources": resources}],
            },
        }))
        .unwrap()
    }

    fn of(resources: &Value) -> ContainerResources {
        ContainerResources::of(&pod(resources).spec.unwrap().containers[0])
    }

    #[test]
    fn the_same_amount_may_be_written_otherwise() {
        let table = [
            (json!({}), json!({"limits": {}}), true),
            (json!({"limits": {"cpu": "1"}}), json!({"limits": {"cpu": "1000m"}}), true),
            (json!({"limits": {"cpu": "1"}}), json!({"limits": {"cpu": "2"}}), false),
            (json!({"limits": {"cpu": "1"}}), json!({"requests": {"cpu": "1"}}), false),
            (json!({"limits": {"memory": "1Mi"}}), json!({}), false),
            (
                json!({"requests": {"memory": "1Mi"}}),
                json!({"requests": {"memory": "1048576"}}),
                true,
            ),
        ];
        for (one, other, same) in table {
            assert_eq!(of(&one).is_same(&of(&other)), same, "{one} {other}");
            assert_eq!(of(&other).is_same(&of(&one)), same, "{other} {one}");
            assert_eq!(is_resized(&pod(&one), &pod(&other)), !same);
        }
    }

    #[test]
    fn a_policy_asks_for_a_restart_of_its_resource_only() {
        let mut wanted = pod(&json!({"limits": {"cpu": "2", "memory": "1Mi"}}));
        let container = &mut wanted.spec.as_mut().unwrap().containers[0];
        container.resize_policy = serde_json::from_value(json!([
            {"resourceName": "cpu", "restartPolicy": "NotRequired"},
            {"resourceName": "memory", "restartPolicy": "RestartContainer"},
        ]))
        .unwrap();
        let needs = |kind, actual: Value| needs_restart(kind, container, &of(&actual));
        let cpu = json!({"limits": {"cpu": "1", "memory": "1Mi"}});
        let memory = json!({"limits": {"cpu": "2"}});
        assert!(!needs(ContainerKind::App, cpu));
        assert!(needs(ContainerKind::App, memory.clone()));
        assert!(needs(ContainerKind::Sidecar, memory.clone()));
        assert!(!needs(ContainerKind::Init, memory));
    }

    #[test]
    fn the_summary_reads_as_kubelets() {
        let pod = pod(&json!({"limits": {"cpu": "2"}, "requests": {"cpu": "1"}}));
        let kubelets = r#"{"containers":[{"name":"c","resources":{"limits":{"cpu":"2"},"requests":{"cpu":"1"}}}],"generation":3"#;
        assert_eq!(summary(&pod, None), format!("{kubelets}}}"));
        assert_eq!(summary(&pod, Some("why")), format!("{kubelets},\"error\":\"why\"}}"));
    }

    proptest! {
        #[test]
        fn what_is_not_taken_changes_nothing_else(old in 0_u32..3, new in 0_u32..3, name in "[a-z]{1,5}") {
            let old = pod(&json!({"limits": {"cpu": old.to_string()}}));
            let mut wanted = pod(&json!({"limits": {"cpu": new.to_string()}}));
            wanted.metadata.labels = Some([(name, String::new())].into());
            let kept = keep_resources(&wanted, &old);
            prop_assert!(!is_resized(&old, &kept));
            prop_assert_eq!(&kept.metadata, &wanted.metadata);
            prop_assert_eq!(keep_resources(&kept, &wanted), wanted);
        }
    }
}
