use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn container(probes: Value) -> Container {
    let mut container = probes;
    container["name"] = json!("c");
    serde_json::from_value(container).unwrap()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Makes every probe that is due at these seconds; the answers are the same.
fn run(
    probes: &mut Probes,
    times: impl IntoIterator<Item = u64>,
    outcome: Outcome,
) -> Vec<(u64, Finding)> {
    let mut found = Vec::new();
    for now in times {
        for kind in probes.due(seconds(now)) {
            found.extend(probes.take(kind, outcome, seconds(now)).map(|finding| (now, finding)));
        }
    }
    found
}

#[test]
fn without_probes_what_runs_is_ready() {
    let mut probes = Probes::begin(&container(json!({})));
    assert!(probes.is_started() && probes.is_ready());
    assert_eq!(probes.next(), None);
    assert!(probes.due(seconds(100)).is_empty());
}

#[test]
fn readiness_needs_its_thresholds() {
    let mut probes = Probes::begin(&container(json!({"readinessProbe": {
        "initialDelaySeconds": 5, "periodSeconds": 2, "successThreshold": 2, "failureThreshold": 3,
    }})));
    assert!(probes.is_started() && !probes.is_ready());
    assert_eq!(run(&mut probes, 0..10, Outcome::Success), [(7, Finding::Ready)]);
    assert_eq!(run(&mut probes, 10..20, Outcome::Failure), [(15, Finding::NotReady)]);
    assert!(!probes.is_ready());
    assert_eq!(run(&mut probes, 20..24, Outcome::Success), [(23, Finding::Ready)]);
}

#[test]
fn a_container_fails_once_and_is_probed_for_readiness_alone_from_then_on() {
    let mut probes = Probes::begin(&container(json!({
        "livenessProbe": {"failureThreshold": 2}, "readinessProbe": {},
    })));
    assert_eq!(
        run(&mut probes, 0..60, Outcome::Failure),
        [(10, Finding::Failed(ProbeKind::Liveness))],
    );
    assert_eq!(probes.due(seconds(60)), [ProbeKind::Readiness]);
}

#[test]
fn nothing_else_is_probed_before_a_container_has_started() {
    let given = container(json!({
        "startupProbe": {"periodSeconds": 1, "failureThreshold": 9},
        "readinessProbe": {"initialDelaySeconds": 30},
        "livenessProbe": {},
    }));
    let mut probes = Probes::begin(&given);
    assert!(!probes.is_started() && !probes.is_ready());
    assert!(run(&mut probes, 0..5, Outcome::Failure).is_empty());
    assert_eq!(probes.due(seconds(5)), [ProbeKind::Startup]);
    assert_eq!(
        probes.take(ProbeKind::Startup, Outcome::Success, seconds(5)),
        Some(Finding::Started)
    );
    assert!(!probes.is_ready());
    assert_eq!(probes.due(seconds(5)), [ProbeKind::Liveness], "at once");
    assert_eq!(probes.next(), Some(seconds(30)), "its delay counts from the container's start");

    let mut probes = Probes::begin(&given);
    assert_eq!(
        run(&mut probes, 0..60, Outcome::Failure),
        [(8, Finding::Failed(ProbeKind::Startup))],
    );
    assert_eq!(probes.next(), None);
}

#[test]
fn what_could_not_be_probed_says_nothing() {
    let mut probes = Probes::begin(&container(json!({"livenessProbe": {"failureThreshold": 1}})));
    assert!(run(&mut probes, 0..100, Outcome::Unknown).is_empty());
    assert_eq!(run(&mut probes, 100..101, Outcome::Failure).len(), 1);
}

#[test]
fn a_probe_that_takes_longer_than_its_period_is_made_again_at_its_end() {
    let mut probes = Probes::begin(&container(json!({"readinessProbe": {"periodSeconds": 2}})));
    assert_eq!(probes.due(seconds(0)), [ProbeKind::Readiness]);
    assert!(probes.due(seconds(5)).is_empty() && probes.next().is_none());
    probes.take(ProbeKind::Readiness, Outcome::Success, seconds(5));
    assert_eq!(probes.due(seconds(5)), [ProbeKind::Readiness]);
    assert_eq!(probes.take(ProbeKind::Liveness, Outcome::Failure, seconds(5)), None);
}

#[test]
fn another_agent_keeps_what_was_known() {
    let given = container(json!({"startupProbe": {}, "readinessProbe": {"failureThreshold": 1}}));
    let mut probes = Probes::resume(&given, true, true, seconds(1000), || 0.5);
    assert!(probes.is_started() && probes.is_ready());
    assert_eq!(probes.next(), Some(seconds(1005)));
    assert_eq!(run(&mut probes, 1000..1006, Outcome::Failure), [(1005, Finding::NotReady)]);
    let probes = Probes::resume(&given, false, false, seconds(3), || 0.0);
    assert!(!probes.is_started() && !probes.is_ready());
}

#[test]
fn a_pod_that_ends_is_probed_for_readiness_alone() {
    let mut probes = Probes::begin(&container(json!({"livenessProbe": {}, "readinessProbe": {}})));
    probes.ends();
    assert_eq!(probes.due(seconds(0)), [ProbeKind::Readiness]);
}

#[test]
fn limits_are_the_apis() {
    let probe = |value: Value| serde_json::from_value::<Probe>(value).unwrap();
    let timing = Timing::of(&probe(json!({})));
    assert_eq!((timing.period, timing.successes, timing.failures), (seconds(10), 1, 3));
    assert_eq!(time_limit(&probe(json!({}))), seconds(1));
    assert_eq!(time_limit(&probe(json!({"timeoutSeconds": -1}))), seconds(1));
    assert_eq!(Timing::of(&probe(json!({"periodSeconds": -1}))).period, seconds(10));
}

fn probe() -> impl Strategy<Value = Option<Value>> {
    let numbers = (0..5, 1..5, 1..4, 1..4);
    prop::option::of(numbers.prop_map(|(delay, period, successes, failures)| {
        json!({"initialDelaySeconds": delay, "periodSeconds": period,
            "successThreshold": successes, "failureThreshold": failures})
    }))
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![Just(Outcome::Success), Just(Outcome::Failure), Just(Outcome::Unknown)]
}

proptest! {
    #[test]
    fn rules_hold(
        startup in probe(), readiness in probe(), liveness in probe(),
        steps in prop::collection::vec((0_u64..4, outcome(), any::<bool>()), 0..80),
    ) {
        let given = container(json!({
            "startupProbe": startup, "readinessProbe": readiness, "livenessProbe": liveness,
        }));
        let mut probes = Probes::begin(&given);
        let mut now = 0;
        let mut flying = Vec::new();
        let mut failed = false;
        let mut last: HashMap<ProbeKind, (u64, u32)> = HashMap::new();
        for (wait, outcome, answers) in steps {
            now += wait;
            let was_started = probes.is_started();
            for kind in probes.due(seconds(now)) {
                prop_assert!(!flying.contains(&kind), "two of a kind at once");
                prop_assert_eq!(kind == ProbeKind::Startup, !was_started);
                prop_assert!(!failed || kind == ProbeKind::Readiness);
                let timing = Timing::of(kind.of(&given).unwrap());
                prop_assert!(seconds(now) >= timing.initial_delay);
                if let Some((before, _)) = last.get(&kind) {
                    prop_assert!(seconds(now - before) >= timing.period);
                }
                last.entry(kind).or_default().0 = now;
                flying.push(kind);
            }
            for kind in if answers { std::mem::take(&mut flying) } else { Vec::new() } {
                let failures = &mut last.get_mut(&kind).unwrap().1;
                match outcome {
                    Outcome::Success => *failures = 0,
                    Outcome::Failure => *failures += 1,
                    Outcome::Unknown => {}
                }
                let failures = *failures;
                let was_ready = probes.is_ready();
                let finding = probes.take(kind, outcome, seconds(now));
                if let Some(Finding::Failed(by)) = finding {
                    prop_assert!(!failed, "it failed twice");
                    prop_assert_eq!(by, kind);
                    prop_assert!(failures >= Timing::of(kind.of(&given).unwrap()).failures);
                    failed = true;
                }
                let flipped = matches!(finding, Some(Finding::Ready | Finding::NotReady));
                prop_assert!(flipped == (was_ready != probes.is_ready())
                    || finding == Some(Finding::Started));
                prop_assert!(probes.is_started() || !probes.is_ready());
                prop_assert!(outcome != Outcome::Unknown || finding.is_none());
            }
            prop_assert!(probes.is_started() || !was_started, "it has started for good");
        }
    }
}
