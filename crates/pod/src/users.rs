//! Which user a pod's sandbox runs as.
//!
//! A process per pod needs a user per pod, so that an escaped guest meets
//! nobody else's files. The number comes from a range that nothing else on the
//! machine may use; it is kept in the pod's checkpoint. A pod may ask for its
//! own (`runAsUser`), or that what it asks for is nobody's on the host
//! (`hostUsers: false`). Pods of a shared sandbox share its user.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext};
use krustlet_model::restarts;
use serde::{Deserialize, Serialize};

use crate::outside::{Domain, PodUser};

/// The user ids that may be given to sandboxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserRange {
    /// The first id; not 0.
    pub first: u32,
    /// How many there are; at least as many as pods.
    pub count: u32,
}

impl Default for UserRange {
    /// One million ids from 2,000,000,000: above what distributions, `systemd`
    /// (up to 1,879,048,191) and `subuid` files hand out, below 2^31, where
    /// some file systems stop.
    fn default() -> Self {
        Self { first: 2_000_000_000, count: 1_000_000 }
    }
}

/// Why there is no user for a pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum UserError {
    #[error("all {count} user ids for sandboxes are taken")]
    Exhausted { count: u32 },

    #[error("{field} {given} is not a user or group id that a sandbox may have")]
    Invalid { field: &'static str, given: i64 },

    #[error("{field} {given} belongs to the ids that the node gives to sandboxes")]
    Reserved { field: &'static str, given: u32 },

    #[error(
        "containers {first} and {other} ask for different users, but a pod's containers share one sandbox"
    )]
    Mixed { first: String, other: String },

    #[error(
        "{field} has no effect in a sandbox that several pods share; leave it out or use a RuntimeClass with a sandbox per pod"
    )]
    Shared { field: &'static str },

    #[error("{field} needs users to give, which an agent without privileges does not have")]
    Unprivileged { field: &'static str },
}

/// `runAsUser` and `runAsGroup` as a container has them.
type GivenIds = (Option<i64>, Option<i64>);

/// What a pod asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// `runAsUser`.
    pub uid: Option<u32>,
    /// `runAsGroup`.
    pub gid: Option<u32>,
    /// `fsGroup`: owns the volumes, and the process is in it.
    pub fs_group: Option<u32>,
    /// `supplementalGroups`.
    pub groups: Vec<u32>,
    /// `hostUsers: false`: its ids are to be nobody else's on the host. Nothing
    /// else is asked for then: a guest cannot tell which ids it has, so that one
    /// from the range is as good as any.
    pub own_users: bool,
}

/// A user as it was given to a pod; part of the pod's checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allotted {
    /// Which sandbox it is for.
    pub domain: Domain,
    /// Whether the id comes from the range, and so is to be kept from others.
    pub from_range: bool,
    /// The user.
    pub user: PodUser,
    /// The group that owns the pod's volumes.
    pub volume_group: u32,
}

/// Reads what a pod asks for.
///
/// User 0 is never given: `runAsUser: 0` counts as not asked, since a guest
/// cannot tell and the sandbox must not be root. [`asks_for_root`] is for telling
/// whoever wrote it.
///
/// # Errors
///
/// [`UserError`] for ids out of range, and for containers of different minds.
pub fn asked(pod: &Pod) -> Result<Asked, UserError> {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let mut asked = of_pod(context)?;
    let mut first: Option<(&str, GivenIds)> = None;
    for (_, container) in restarts::containers(pod) {
        let own = container.security_context.as_ref();
        let uid = user_of(context, container);
        let gid = own.and_then(|own| own.run_as_group).or_else(|| context?.run_as_group);
        match first {
            None => first = Some((&container.name, (uid, gid))),
            Some((name, ids)) if ids != (uid, gid) => {
                return Err(UserError::Mixed {
                    first: name.to_owned(),
                    other: container.name.clone(),
                });
            }
            Some(_) => {}
        }
    }
    if let Some((_, (uid, gid))) = first {
        asked.uid = id("runAsUser", uid)?.filter(|&uid| uid != 0);
        asked.gid = id("runAsGroup", gid)?.filter(|&gid| gid != 0);
    }
    if has_own_users(pod) {
        return Ok(Asked { own_users: true, ..Asked::default() });
    }
    Ok(asked)
}

/// `hostUsers: false`, by which a pod's ids are mapped to ones that no other
/// pod and no user of the host has.
fn has_own_users(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_users) == Some(false)
}

/// Whether a pod asks for the host's user 0, which it does not get.
#[must_use]
pub fn asks_for_root(pod: &Pod) -> bool {
    if has_own_users(pod) {
        return false;
    }
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    restarts::containers(pod).any(|(_, container)| user_of(context, container) == Some(0))
}

/// Whether a container asks for user 0 and not to run as it.
///
/// Source: kubelet, `verifyRunAsNonRoot` in
/// `pkg/kubelet/kuberuntime/security_context_others.go`. What the image says of
/// its user is of no matter here, as no sandbox is root.
#[must_use]
pub fn breaks_non_root(pod: &Pod, container: &Container) -> bool {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let own = container.security_context.as_ref();
    let non_root = own.and_then(|own| own.run_as_non_root).or_else(|| context?.run_as_non_root);
    non_root == Some(true) && user_of(context, container) == Some(0)
}

fn user_of(context: Option<&PodSecurityContext>, container: &Container) -> Option<i64> {
    let own = container.security_context.as_ref();
    own.and_then(|own| own.run_as_user).or_else(|| context?.run_as_user)
}

fn of_pod(context: Option<&PodSecurityContext>) -> Result<Asked, UserError> {
    let Some(context) = context else { return Ok(Asked::default()) };
    let mut groups = Vec::new();
    for &given in context.supplemental_groups.iter().flatten() {
        groups.extend(id("supplementalGroups", Some(given))?);
    }
    Ok(Asked { fs_group: id("fsGroup", context.fs_group)?, groups, ..Asked::default() })
}

fn id(field: &'static str, given: Option<i64>) -> Result<Option<u32>, UserError> {
    let Some(given) = given else { return Ok(None) };
    match u32::try_from(given) {
        // The last one means "no change" to the kernel.
        Ok(id) if id != u32::MAX => Ok(Some(id)),
        Ok(_) | Err(_) => Err(UserError::Invalid { field, given }),
    }
}

/// The ids that are taken.
#[derive(Debug)]
pub struct Users {
    range: UserRange,
    /// Who has which id of the range, and how many pods share it.
    taken: BTreeMap<u32, (Domain, usize)>,
    /// Where the search goes on, so that an id is not soon used again.
    next: u32,
}

impl Users {
    /// No id is taken.
    #[must_use]
    pub fn new(range: UserRange) -> Self {
        Self { range, taken: BTreeMap::new(), next: range.first.max(1) }
    }

    /// Takes note of a user that was given by an earlier agent.
    pub fn keep(&mut self, allotted: &Allotted) {
        if allotted.from_range {
            let holder = self.taken.entry(allotted.user.uid);
            holder.or_insert_with(|| (allotted.domain.clone(), 0)).1 += 1;
        }
    }

    /// Gives a pod its user.
    ///
    /// # Errors
    ///
    /// [`UserError::Exhausted`] if none is free, [`UserError::Shared`] if the
    /// pod asks for its own in a shared sandbox, [`UserError::Reserved`] if it
    /// asks for one that is another pod's or may become so.
    pub fn allot(&mut self, domain: Domain, asked: &Asked) -> Result<Allotted, UserError> {
        self.refuse_reserved(asked)?;
        let shared = match domain {
            Domain::Pod => None,
            Domain::Namespace(_) | Domain::Node => Some(&domain),
        };
        if let Some(domain) = shared {
            for (field, is_given) in [
                ("runAsUser", asked.uid.is_some()),
                ("runAsGroup", asked.gid.is_some()),
                ("fsGroup", asked.fs_group.is_some()),
                ("supplementalGroups", !asked.groups.is_empty()),
                ("hostUsers", asked.own_users),
            ] {
                if is_given {
                    return Err(UserError::Shared { field });
                }
            }
            let holder = self.taken.iter_mut().find(|(_, (holder, _))| holder == domain);
            if let Some((&uid, (_, pods))) = holder {
                *pods += 1;
                return Ok(allotted(domain.clone(), uid, true, asked));
            }
        }
        if let Some(uid) = asked.uid {
            return Ok(allotted(domain, uid, false, asked));
        }
        let uid = self.free().ok_or(UserError::Exhausted { count: self.range.count })?;
        self.taken.insert(uid, (domain.clone(), 1));
        Ok(allotted(domain, uid, true, asked))
    }

    /// Refuses ids of the range: with them, a pod could read what others own.
    fn refuse_reserved(&self, asked: &Asked) -> Result<(), UserError> {
        let one = |field, id: Option<u32>| id.map(|id| (field, id));
        let ids = [
            one("runAsUser", asked.uid),
            one("runAsGroup", asked.gid),
            one("fsGroup", asked.fs_group),
        ];
        let groups = asked.groups.iter().map(|&group| ("supplementalGroups", group));
        let UserRange { first, count } = self.range;
        let is_reserved = |id: u32| id.checked_sub(first).is_some_and(|offset| offset < count);
        match ids.into_iter().flatten().chain(groups).find(|&(_, id)| is_reserved(id)) {
            Some((field, given)) => Err(UserError::Reserved { field, given }),
            None => Ok(()),
        }
    }

    /// Takes a user back.
    pub fn release(&mut self, allotted: &Allotted) {
        if !allotted.from_range {
            return;
        }
        if let Some((_, pods)) = self.taken.get_mut(&allotted.user.uid) {
            *pods = pods.saturating_sub(1);
            if *pods == 0 {
                self.taken.remove(&allotted.user.uid);
            }
        }
    }

    fn free(&mut self) -> Option<u32> {
        let first = self.range.first.max(1);
        let end = self.range.first.saturating_add(self.range.count);
        let found = (self.next..end)
            .chain(first..self.next.min(end))
            .find(|uid| !self.taken.contains_key(uid))?;
        self.next = found + 1;
        Some(found)
    }
}

fn allotted(domain: Domain, uid: u32, from_range: bool, asked: &Asked) -> Allotted {
    let gid = asked.gid.unwrap_or(uid);
    let mut groups = asked.groups.clone();
    groups.extend(asked.fs_group);
    groups.sort_unstable();
    groups.dedup();
    // Group 0 opens root's files.
    groups.retain(|&group| group != 0 && group != gid);
    Allotted {
        domain,
        from_range,
        user: PodUser { uid, gid, groups },
        volume_group: asked.fs_group.filter(|&group| group != 0).unwrap_or(gid),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const RANGE: UserRange = UserRange { first: 1000, count: 3 };

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_pod_gets_the_user_it_asks_for() {
        let pod = pod(json!({
            "securityContext": {"runAsUser": 7, "runAsGroup": 8, "fsGroup": 9, "supplementalGroups": [0, 5]},
            "containers": [{"name": "a"}, {"name": "b", "securityContext": {"runAsUser": 7}}],
        }));
        let mut users = Users::new(RANGE);
        let given = users.allot(Domain::Pod, &asked(&pod).unwrap()).unwrap();
        assert_eq!(given.user, PodUser { uid: 7, gid: 8, groups: vec![5, 9] });
        assert_eq!((given.volume_group, given.from_range), (9, false));
    }

    #[test]
    fn root_is_never_given() {
        let pod = pod(json!({
            "securityContext": {"runAsUser": 0, "runAsGroup": 0, "fsGroup": 0},
            "containers": [{"name": "a"}],
        }));
        let given = Users::new(RANGE).allot(Domain::Pod, &asked(&pod).unwrap()).unwrap();
        assert_eq!(given.user, PodUser { uid: 1000, gid: 1000, groups: vec![] });
        assert_eq!(given.volume_group, 1000);
    }

    #[test]
    fn the_ids_of_a_pod_with_users_of_its_own_are_nobody_elses() {
        let pod = pod(json!({
            "hostUsers": false,
            "securityContext": {"runAsUser": 0, "runAsGroup": 8, "fsGroup": 9, "supplementalGroups": [5]},
            "containers": [{"name": "a"}],
        }));
        let mut users = Users::new(RANGE);
        for uid in [1000, 1001] {
            let given = users.allot(Domain::Pod, &asked(&pod).unwrap()).unwrap();
            assert_eq!(given.user, PodUser { uid, gid: uid, groups: vec![] });
            assert_eq!((given.volume_group, given.from_range), (uid, true));
        }
        assert!(!asks_for_root(&pod));
        let shared = users.allot(Domain::Node, &asked(&pod).unwrap());
        assert!(matches!(shared, Err(UserError::Shared { field: "hostUsers" })));
    }

    #[test]
    fn not_to_be_root_and_to_be_root_is_a_contradiction() {
        for (of_pod, own, breaks) in [
            (json!({"runAsNonRoot": true, "runAsUser": 0}), json!({}), true),
            (json!({"runAsUser": 0}), json!({"runAsNonRoot": true}), true),
            (json!({"runAsNonRoot": true}), json!({"runAsUser": 0}), true),
            (json!({"runAsNonRoot": true, "runAsUser": 0}), json!({"runAsUser": 7}), false),
            (json!({"runAsNonRoot": true}), json!({"runAsNonRoot": false, "runAsUser": 0}), false),
            (json!({"runAsNonRoot": true}), json!({}), false),
            (json!({"runAsUser": 0}), json!({}), false),
        ] {
            let pod = pod(json!({
                "securityContext": of_pod,
                "containers": [{"name": "a", "securityContext": own}],
            }));
            let container = &pod.spec.as_ref().unwrap().containers[0];
            assert_eq!(breaks_non_root(&pod, container), breaks, "{pod:?}");
            let root = user_of(pod.spec.as_ref().unwrap().security_context.as_ref(), container);
            assert_eq!(asks_for_root(&pod), root == Some(0));
        }
    }

    #[test]
    fn nobody_asks_for_an_id_of_another_sandbox() {
        let own = Asked::default;
        for (field, asked) in [
            ("runAsUser", Asked { uid: Some(1000), ..own() }),
            ("runAsGroup", Asked { gid: Some(1002), ..own() }),
            ("fsGroup", Asked { fs_group: Some(1001), ..own() }),
            ("supplementalGroups", Asked { groups: vec![7, 1001], ..own() }),
        ] {
            let error = Users::new(RANGE).allot(Domain::Pod, &asked).unwrap_err();
            assert!(matches!(error, UserError::Reserved { field: of, .. } if of == field));
        }
        for uid in [999, 1003] {
            let asked = Asked { uid: Some(uid), ..own() };
            assert_eq!(Users::new(RANGE).allot(Domain::Pod, &asked).unwrap().user.uid, uid);
        }
    }

    #[test]
    fn containers_of_one_pod_are_of_one_mind() {
        let pod = pod(json!({"containers": [
            {"name": "a", "securityContext": {"runAsUser": 7}},
            {"name": "b"},
        ]}));
        assert!(matches!(asked(&pod), Err(UserError::Mixed { .. })));
        let pod = self::pod(json!({"containers": [
            {"name": "a", "securityContext": {"runAsUser": -7}},
        ]}));
        assert!(matches!(asked(&pod), Err(UserError::Invalid { .. })));
    }

    #[test]
    fn pods_of_a_shared_sandbox_share_its_user() {
        let mut users = Users::new(RANGE);
        let domain = Domain::Namespace("n".to_owned());
        let a = users.allot(domain.clone(), &Asked::default()).unwrap();
        let b = users.allot(domain.clone(), &Asked::default()).unwrap();
        assert_eq!(a.user, b.user);
        users.release(&a);
        let other = users.allot(Domain::Pod, &Asked::default()).unwrap();
        assert_ne!(other.user.uid, b.user.uid);
        let own = Asked { uid: Some(7), ..Asked::default() };
        assert!(matches!(users.allot(domain, &own), Err(UserError::Shared { field: "runAsUser" })));
    }

    #[test]
    fn a_range_ends() {
        let mut users = Users::new(RANGE);
        let all: Vec<_> =
            (0..3).map(|_| users.allot(Domain::Pod, &Asked::default()).unwrap()).collect();
        let error = users.allot(Domain::Pod, &Asked::default()).unwrap_err();
        assert_eq!(error, UserError::Exhausted { count: 3 });
        users.release(&all[1]);
        assert_eq!(users.allot(Domain::Pod, &Asked::default()).unwrap().user.uid, 1001);
    }

    proptest! {
        #[test]
        fn no_two_pods_have_one_user(steps in prop::collection::vec((any::<bool>(), 0_usize..4), 0..60)) {
            let mut users = Users::new(UserRange { first: 5, count: 4 });
            let mut held: Vec<Allotted> = Vec::new();
            for (take, which) in steps {
                if take {
                    if let Ok(new) = users.allot(Domain::Pod, &Asked::default()) {
                        prop_assert!(held.iter().all(|old| old.user.uid != new.user.uid));
                        prop_assert!((5..9).contains(&new.user.uid));
                        held.push(new);
                    } else {
                        prop_assert_eq!(held.len(), 4);
                    }
                } else if which < held.len() {
                    users.release(&held.swap_remove(which));
                }
            }
        }
    }
}
