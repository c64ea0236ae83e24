//! Whether pods get addresses of their own. Pure.
//!
//! | asked for | may it | podCIDR | pods |
//! |---|---|---|---|
//! | host | – | – | share the node's address |
//! | auto | no, and there were none before | – | share the node's address, with the reason |
//! | auto | no | – | wait, with the reason |
//! | auto, own | yes | of the Node | have their own |
//! | auto, own | yes | unknown yet, an earlier agent's | have their own |
//! | auto, own | yes | unknown yet | wait |
//! | auto, own | yes | the Node has none, the configuration does | have their own |
//! | auto | yes | none, and there was none before | share the node's address, with the reason |
//! | auto | yes | none, an earlier agent's or the Node's before | wait |
//! | own | yes | none | wait |
//!
//! "Has none" is said [`NODE_WAIT`] after the Node was seen without: the
//! controller that gives ranges out takes a moment. A range that comes later is
//! taken for the pods that come after it. One that cannot be used is none.
//!
//! Pods that had addresses of their own are not given the node's for want of
//! one: what is said of who may call them would hold no more.

use std::{net::IpAddr, time::Duration};

use crate::ranges::{PodRanges, RangeError};

/// How long a Node is given to get its podCIDR: the controller manager does so
/// within a second of a Node's creation.
pub const NODE_WAIT: Duration = Duration::from_secs(5);

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Addresses of their own if that is possible, else the node's.
    #[default]
    Auto,
    /// Addresses of their own, or none.
    Own,
    /// The node's address.
    Host,
}

/// What the Node says of its podCIDRs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodeRanges {
    /// It is not known yet.
    #[default]
    Unknown,
    /// It has none.
    None,
    /// These texts.
    Some(Vec<String>),
}

/// What a decision goes by.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// What is asked for.
    pub mode: Mode,
    /// Why this agent cannot give pods a namespace, if so.
    pub unable: Option<&'a str>,
    /// What the Node says.
    pub node: &'a NodeRanges,
    /// The node's own addresses, which can be no pod's.
    pub addresses: &'a [IpAddr],
    /// Whether it has had its time.
    pub has_waited: bool,
    /// Ranges that the node's configuration names.
    pub configured: Option<&'a PodRanges>,
    /// Ranges that pods of this node got addresses of, under this agent or one
    /// before it.
    pub remembered: Option<&'a PodRanges>,
    /// Whether pods got addresses of their own, of these or of ranges that are not
    /// known any more.
    pub had_own: bool,
}

/// What becomes of pods from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// They wait, for this.
    Wait(String),
    /// They share the node's address; why, unless it was asked for.
    Host(Option<String>),
    /// They get addresses from these ranges.
    Own(PodRanges),
}

/// Decides.
#[must_use]
pub fn decide(facts: &Facts<'_>) -> Decision {
    if facts.mode == Mode::Host {
        return Decision::Host(None);
    }
    let without = |why: String| match (facts.mode, facts.had_own) {
        (Mode::Auto | Mode::Host, false) => Decision::Host(Some(why)),
        (Mode::Auto | Mode::Host, true) => Decision::Wait(apart(&why)),
        (Mode::Own, _) => Decision::Wait(why),
    };
    if let Some(why) = facts.unable {
        return without(why.to_owned());
    }
    let usable = |ranges: PodRanges| ranges.apart_from(facts.addresses);
    match facts.node {
        NodeRanges::Some(texts) => match PodRanges::parse(texts).and_then(usable) {
            Ok(ranges) => Decision::Own(ranges),
            Err(RangeError::None) => none(facts, without),
            Err(error) => without(format!("the Node's podCIDRs cannot be used: {error}")),
        },
        NodeRanges::None => none(facts, without),
        NodeRanges::Unknown => match facts.remembered {
            Some(ranges) => Decision::Own(ranges.clone()),
            None => Decision::Wait("the Node is not registered yet".to_owned()),
        },
    }
}

/// Why pods wait that could share the node's address but for those before them.
pub(crate) fn apart(why: &str) -> String {
    format!(
        "{why}; pods of this node had addresses of their own, so that new ones do not share the \
         node's unless --pod-network=host says so"
    )
}

fn none(facts: &Facts<'_>, without: impl Fn(String) -> Decision) -> Decision {
    if !facts.has_waited {
        // An earlier agent's ranges may be the Node's no more: no pod gets one.
        return Decision::Wait("the Node has no podCIDR yet".to_owned());
    }
    let configured = facts.configured.cloned();
    match configured.map(|ranges| ranges.apart_from(facts.addresses)) {
        Some(Ok(ranges)) => Decision::Own(ranges),
        Some(Err(error)) => {
            without(format!("podCIDR of the configuration cannot be used: {error}"))
        }
        None => without(
            "the Node has no podCIDR: let the controller manager give it one \
             (--allocate-node-cidrs), or set podCIDR in the KubeletConfiguration"
                .to_owned(),
        ),
    }
}

/// Failures in a row after which one is not believed to pass: a quarter of a
/// minute.
const FAILURES: u32 = 3;

/// The links could not be made, or not be put right.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failure {
    /// What is asked for.
    pub(crate) mode: Mode,
    /// Whether a right or a part of the kernel is missing.
    pub(crate) is_permanent: bool,
    /// Whether it ever worked on this machine before the agent started.
    pub(crate) was_led: bool,
    /// Whether it worked since.
    pub(crate) is_led: bool,
    /// Whether new pods get addresses of the very ranges that it is about.
    pub(crate) is_shown: bool,
    /// So many, in a row.
    pub(crate) failures: u32,
}

/// What becomes of new pods after a failure. Those that have addresses keep them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AfterFailure {
    /// They get addresses as before.
    GoOn,
    /// They wait for the next try.
    Wait,
    /// They share the node's address.
    Share,
}

/// Decides what becomes of new pods after a failure.
///
/// Who shares the node's address does so for as long as it lives, and nothing then
/// holds of who may call pods with their own. So where it ever worked on this
/// machine they wait; where not, for [`FAILURES`] tries, or for none if the failure
/// will not pass.
#[must_use]
pub(crate) fn after_failure(failure: Failure) -> AfterFailure {
    let Failure { mode, is_permanent, was_led, is_led, is_shown, failures } = failure;
    let lasts = failures >= FAILURES;
    if is_shown && !lasts {
        AfterFailure::GoOn
    } else if mode == Mode::Auto && !is_led && !was_led && (is_permanent || lasts) {
        AfterFailure::Share
    } else {
        AfterFailure::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(text: &str) -> PodRanges {
        PodRanges::parse(&[text]).unwrap()
    }

    fn facts(node: &NodeRanges) -> Facts<'_> {
        Facts {
            mode: Mode::Auto,
            unable: None,
            node,
            addresses: &[],
            has_waited: false,
            configured: None,
            remembered: None,
            had_own: false,
        }
    }

    #[test]
    fn the_nodes_ranges_go_before_all_others() {
        let node = NodeRanges::Some(vec!["10.1.0.0/24".into()]);
        let (configured, remembered) = (ranges("10.2.0.0/24"), ranges("10.3.0.0/24"));
        let mut seen = Facts {
            configured: Some(&configured),
            remembered: Some(&remembered),
            had_own: true,
            has_waited: true,
            ..facts(&node)
        };
        assert_eq!(decide(&seen), Decision::Own(ranges("10.1.0.0/24")));
        seen.node = &NodeRanges::None;
        assert_eq!(decide(&seen), Decision::Own(configured.clone()));
        seen.has_waited = false;
        assert!(matches!(decide(&seen), Decision::Wait(_)));
        seen.node = &NodeRanges::Unknown;
        assert_eq!(decide(&seen), Decision::Own(remembered.clone()));
        seen.remembered = None;
        assert!(matches!(decide(&seen), Decision::Wait(_)));
    }

    #[test]
    fn only_auto_falls_back_to_the_nodes_address() {
        let bad = NodeRanges::Some(vec!["nonsense".into()]);
        for (unable, node) in
            [(Some("not root"), &NodeRanges::Unknown), (None, &NodeRanges::None), (None, &bad)]
        {
            let seen = Facts { unable, has_waited: true, ..facts(node) };
            assert!(matches!(decide(&seen), Decision::Host(Some(_))), "{seen:?}");
            let seen = Facts { mode: Mode::Own, ..seen };
            assert!(matches!(decide(&seen), Decision::Wait(_)), "{seen:?}");
            let seen = Facts { mode: Mode::Host, ..seen };
            assert_eq!(decide(&seen), Decision::Host(None));
        }
    }

    #[test]
    fn where_pods_had_addresses_of_their_own_none_is_given_the_nodes() {
        let bad = NodeRanges::Some(vec!["nonsense".into()]);
        let good = NodeRanges::Some(vec!["10.3.0.0/24".into()]);
        let before = ranges("10.3.0.0/24");
        for (unable, node, word) in [
            (None, &NodeRanges::None, "has no podCIDR"),
            (None, &bad, "cannot be used"),
            (Some("no right"), &good, "no right"),
            (Some("no right"), &NodeRanges::None, "no right"),
            (Some("no right"), &NodeRanges::Unknown, "no right"),
        ] {
            // Also if nobody knows of which ranges.
            let lost = Facts { unable, has_waited: true, had_own: true, ..facts(node) };
            let seen = Facts { remembered: Some(&before), ..lost.clone() };
            for seen in [&lost, &seen] {
                let Decision::Wait(why) = decide(seen) else { panic!("{seen:?}") };
                assert!(why.contains(word) && why.contains("--pod-network=host"), "{why}");
            }
            // Unless that is asked for, or none had one.
            let asked = Facts { mode: Mode::Host, ..seen.clone() };
            assert_eq!(decide(&asked), Decision::Host(None));
            let first = Facts { remembered: None, had_own: false, ..seen };
            assert!(matches!(decide(&first), Decision::Host(Some(_))), "{first:?}");
        }
    }

    #[test]
    fn a_range_that_holds_the_nodes_own_address_is_refused() {
        let node = NodeRanges::Some(vec!["192.0.2.0/24".into()]);
        let addresses = ["192.0.2.1".parse().unwrap()];
        let seen = Facts { addresses: &addresses, ..facts(&node) };
        let Decision::Host(Some(why)) = decide(&seen) else { panic!("{:?}", decide(&seen)) };
        assert!(why.contains("contains 192.0.2.1"), "{why}");
        let configured = ranges("192.0.2.0/24");
        let seen = Facts {
            node: &NodeRanges::None,
            has_waited: true,
            configured: Some(&configured),
            ..seen
        };
        assert!(matches!(decide(&seen), Decision::Host(Some(_))));
    }

    fn failure(failures: u32) -> Failure {
        let mode = Mode::Auto;
        let (is_permanent, was_led, is_led, is_shown) = (false, false, false, false);
        Failure { mode, is_permanent, was_led, is_led, is_shown, failures }
    }

    #[test]
    fn a_passing_failure_does_not_make_pods_share_the_nodes_address() {
        use AfterFailure::{Share, Wait};
        for failures in [1, FAILURES, u32::MAX] {
            let seen = failure(failures);
            assert_eq!(after_failure(Failure { was_led: true, ..seen }), Wait);
            assert_eq!(after_failure(Failure { is_led: true, ..seen }), Wait);
            let permanent = Failure { is_permanent: true, ..seen };
            assert_eq!(after_failure(permanent), Share);
            assert_eq!(after_failure(Failure { was_led: true, ..permanent }), Wait);
            assert_eq!(after_failure(Failure { is_led: true, ..permanent }), Wait);
            assert_eq!(after_failure(Failure { mode: Mode::Own, ..permanent }), Wait);
        }
        assert_eq!(after_failure(failure(FAILURES - 1)), Wait);
        assert_eq!(after_failure(failure(FAILURES)), Share);
    }

    #[test]
    fn a_failure_that_lasts_holds_new_pods_up_and_at_once_if_the_range_is_another() {
        for mode in [Mode::Auto, Mode::Own] {
            let seen =
                |failures| Failure { mode, was_led: true, is_led: true, ..failure(failures) };
            let shown = |failures| Failure { is_shown: true, ..seen(failures) };
            assert_eq!(after_failure(shown(FAILURES - 1)), AfterFailure::GoOn);
            assert_eq!(after_failure(shown(FAILURES)), AfterFailure::Wait);
            assert_eq!(after_failure(seen(1)), AfterFailure::Wait);
        }
    }
}
