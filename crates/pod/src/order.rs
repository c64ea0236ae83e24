//! Whose turn it is: the order in which a pod's containers start and stop, and
//! when the pod has finished by itself.
//!
//! Pure. Source: kubelet, `computePodActions` and `computeInitContainerActions`
//! in `pkg/kubelet/kuberuntime/`, `terminationOrdering` in
//! `pkg/kubelet/kuberuntime/kuberuntime_termination_order.go`.

use krustlet_model::observed::ContainerKind;

/// Where one container stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It does not run and should, now.
    Due,
    /// It does not run and should, later; or its image is not there yet.
    Held,
    /// It is being started, or runs and has not passed its startup probe.
    Starting,
    /// It runs and counts as started.
    Started,
    /// It is over and will not run again; its last exit code was 0.
    Succeeded,
    /// It is over and will not run again; it failed.
    Failed,
}

impl Stage {
    /// Whether it runs, or may do so without having said it yet.
    #[must_use]
    pub fn is_alive(self) -> bool {
        match self {
            Self::Starting | Self::Started => true,
            Self::Due | Self::Held | Self::Succeeded | Self::Failed => false,
        }
    }

    fn is_over(self) -> bool {
        match self {
            Self::Succeeded | Self::Failed => true,
            Self::Due | Self::Held | Self::Starting | Self::Started => false,
        }
    }
}

/// One container, in the order of the spec, init containers first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Which list of the spec it comes from.
    pub kind: ContainerKind,
    /// Where it stands.
    pub stage: Stage,
    /// Whether it was started at least once in the sandbox that is there now.
    pub has_begun: bool,
}

/// Indices of the containers to start now.
///
/// Init containers run one after the other, each to its end; a sidecar must
/// have started before the next begins. Once all have, the app containers start
/// together, and from then on each container restarts on its own.
#[must_use]
pub fn to_start(all: &[Standing]) -> Vec<usize> {
    let mut due = Vec::new();
    let initialised = is_initialised(all);
    let mut open = true;
    for (index, container) in all.iter().enumerate() {
        let is_due = container.stage == Stage::Due;
        match container.kind {
            ContainerKind::Init if initialised => {}
            ContainerKind::Init => {
                if open && is_due {
                    due.push(index);
                }
                open &= container.stage == Stage::Succeeded;
            }
            ContainerKind::Sidecar => {
                // One that has begun restarts whatever the others do.
                if is_due && (open || container.has_begun) {
                    due.push(index);
                }
                if !initialised {
                    open &= container.stage == Stage::Started;
                }
            }
            ContainerKind::App => {
                if open && is_due {
                    due.push(index);
                }
            }
        }
    }
    due
}

/// Whether the app containers have had their turn, so that what the init
/// containers and sidecars do no longer holds them up.
fn is_initialised(all: &[Standing]) -> bool {
    all.iter().any(|container| container.kind == ContainerKind::App && container.has_begun)
}

/// Whether nothing but sidecars runs or will run: every app container is over,
/// or an init container failed for good before they had their turn.
#[must_use]
pub fn has_finished(all: &[Standing]) -> bool {
    let of = |kind| move |container: &&Standing| container.kind == kind;
    let mut apps = all.iter().filter(of(ContainerKind::App));
    if all.iter().filter(of(ContainerKind::Init)).any(|init| init.stage == Stage::Failed) {
        return apps.all(|app| !app.stage.is_alive());
    }
    apps.all(|app| app.stage.is_over())
}

/// Indices of the containers to stop now: init and app containers together,
/// and when they are gone the sidecars, the last one first.
#[must_use]
pub fn to_stop(all: &[Standing]) -> Vec<usize> {
    let alive = |wanted: fn(ContainerKind) -> bool| {
        let of = all.iter().enumerate();
        of.filter(move |(_, container)| wanted(container.kind) && container.stage.is_alive())
            .map(|(index, _)| index)
    };
    let first: Vec<usize> = alive(|kind| kind != ContainerKind::Sidecar).collect();
    if !first.is_empty() {
        return first;
    }
    alive(|kind| kind == ContainerKind::Sidecar).next_back().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use ContainerKind::{App, Init, Sidecar};
    use Stage::{Due, Failed, Held, Started, Starting, Succeeded};
    use proptest::prelude::*;

    use super::*;

    fn all(list: &[(ContainerKind, Stage)]) -> Vec<Standing> {
        let has_begun = |stage| !matches!(stage, Due | Held);
        list.iter()
            .map(|&(kind, stage)| Standing { kind, stage, has_begun: has_begun(stage) })
            .collect()
    }

    #[test]
    fn containers_start_in_order() {
        type Case<'a> = (&'a [(ContainerKind, Stage)], &'a [usize]);
        let table: &[Case<'_>] = &[
            (&[(App, Due), (App, Due)], &[0, 1]),
            (&[(App, Held), (App, Due)], &[1]),
            (&[(Init, Due), (Init, Due), (App, Due)], &[0]),
            (&[(Init, Starting), (Init, Due), (App, Due)], &[]),
            (&[(Init, Succeeded), (Init, Due), (App, Due)], &[1]),
            (&[(Init, Held), (Sidecar, Due), (App, Due)], &[]),
            (&[(Sidecar, Due), (Init, Due), (App, Due)], &[0]),
            (&[(Sidecar, Starting), (Init, Due), (App, Due)], &[]),
            (&[(Sidecar, Started), (Init, Due), (App, Due)], &[1]),
            (&[(Sidecar, Started), (Init, Succeeded), (App, Due)], &[2]),
            (&[(Init, Failed), (App, Due)], &[]),
            // Later each goes its own way.
            (&[(Sidecar, Due), (App, Due), (App, Started)], &[0, 1]),
            (&[(Sidecar, Held), (App, Due), (App, Started)], &[1]),
        ];
        for (containers, expected) in table {
            assert_eq!(to_start(&all(containers)), *expected, "{containers:?}");
        }
    }

    #[test]
    fn a_sidecar_that_ended_during_init_restarts() {
        let mut containers = all(&[(Sidecar, Due), (Init, Starting), (App, Due)]);
        containers[0].has_begun = true;
        assert_eq!(to_start(&containers), [0]);
    }

    #[test]
    fn a_pod_finishes_with_its_app_containers() {
        let table: &[(&[(ContainerKind, Stage)], bool)] = &[
            (&[(App, Due)], false),
            (&[(App, Started)], false),
            (&[(App, Held), (App, Succeeded)], false),
            (&[(App, Failed), (App, Succeeded)], true),
            (&[(Sidecar, Started), (App, Succeeded)], true),
            (&[(Init, Failed), (App, Due)], true),
            (&[(Init, Failed), (App, Started)], false),
            (&[(Init, Due), (App, Due)], false),
        ];
        for (containers, expected) in table {
            assert_eq!(has_finished(&all(containers)), *expected, "{containers:?}");
        }
    }

    #[test]
    fn sidecars_stop_last_and_in_reverse() {
        let mut containers =
            all(&[(Sidecar, Started), (Sidecar, Started), (App, Started), (App, Starting)]);
        assert_eq!(to_stop(&containers), [2, 3]);
        containers[2].stage = Succeeded;
        assert_eq!(to_stop(&containers), [3]);
        containers[3].stage = Failed;
        assert_eq!(to_stop(&containers), [1]);
        containers[1].stage = Failed;
        assert_eq!(to_stop(&containers), [0]);
        containers[0].stage = Held;
        assert_eq!(to_stop(&containers), [0_usize; 0]);
    }

    fn standing() -> impl Strategy<Value = Standing> {
        let kind = prop_oneof![Just(Init), Just(Sidecar), Just(App)];
        let stage = prop_oneof![
            Just(Due),
            Just(Held),
            Just(Starting),
            Just(Started),
            Just(Succeeded),
            Just(Failed)
        ];
        (kind, stage, any::<bool>()).prop_map(|(kind, stage, begun)| Standing {
            kind,
            stage,
            has_begun: begun || !matches!(stage, Due | Held),
        })
    }

    proptest! {
        #[test]
        fn only_what_is_due_starts_and_only_what_lives_is_stopped(
            mut containers in prop::collection::vec(standing(), 1..8),
        ) {
            containers.sort_by_key(|container| container.kind == App);
            for index in to_start(&containers) {
                prop_assert_eq!(containers[index].stage, Due);
            }
            let inits = to_start(&containers)
                .into_iter()
                .filter(|&index| containers[index].kind == Init)
                .count();
            prop_assert!(inits <= 1, "two init containers at once");
            let stopped = to_stop(&containers);
            for &index in &stopped {
                prop_assert!(containers[index].stage.is_alive());
            }
            let any_alive = containers.iter().any(|container| container.stage.is_alive());
            prop_assert_eq!(stopped.is_empty(), !any_alive, "something is left that nobody stops");
        }
    }
}
