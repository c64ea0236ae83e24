//! What older sandboxes and zygotes say, word for word. Nothing of this is ever
//! changed: those that said it may live still.

use serde::de::DeserializeOwned;

use super::*;
use crate::{Packet, socket::parse_frame};

/// The message of a frame that is written there.
fn said<T: DeserializeOwned>(body: &str) -> T {
    let bytes = format!("{{\"id\":7,\"body\":{body}}}").into_bytes();
    let frame = parse_frame(&Packet { bytes, fds: vec![] });
    let frame: Frame<T> = frame.unwrap_or_else(|error| panic!("{body}: {error:?}"));
    assert_eq!(frame.id, 7);
    frame.body
}

fn id() -> ContainerId {
    ContainerId::from_bytes([0xab; 32])
}

/// With an id, in place of `ID`.
fn with_id(text: &str) -> String {
    text.replace("ID", id().digits())
}

#[test]
fn each_answer_of_a_sandbox_of_version_2_is_understood() {
    let failed = |failure| SandboxReply::Failed(failure);
    let word = || "x".to_owned();
    let stats = StatsReport {
        id: id(),
        pod: PodUid::new("u"),
        memory_bytes: 1,
        cpu_ns: 2,
        log_dropped_bytes: 3,
        network: NetworkReport {
            received_bytes: 4,
            sent_bytes: 5,
            opened: 6,
            accepted: 7,
            refused: 8,
            refusals: Refusals::default(),
            sockets: 9,
        },
    };
    let exit = ExitReport {
        exit_code: 1,
        reason: word(),
        message: String::new(),
        started_at: Some(2),
        finished_at: 3,
    };
    let runs = [RunState::Created, RunState::Running { started_at: 4 }, RunState::Exited(exit)];
    let containers =
        runs.map(|state| ContainerReport { id: id(), pod: PodUid::new("u"), state }).into();
    for (text, meant) in [
        (r#"{"reply":"done"}"#, SandboxReply::Done),
        (r#"{"reply":"hello","version":2,"pid":3}"#, SandboxReply::Hello { version: 2, pid: 3 }),
        (
            r#"{"reply":"containers","containers":[{"id":"ID","pod":"u","state":"created"},
            {"id":"ID","pod":"u","state":{"running":{"started_at":4}}},
            {"id":"ID","pod":"u","state":{"exited":{"exit_code":1,"reason":"x","message":"",
            "started_at":2,"finished_at":3}}}]}"#,
            SandboxReply::Containers { containers },
        ),
        (
            r#"{"reply":"stats","containers":[{"id":"ID","pod":"u","memory_bytes":1,"cpu_ns":2,
            "log_dropped_bytes":3,"network":{"received_bytes":4,"sent_bytes":5,"opened":6,
            "accepted":7,"refused":8,"sockets":9}}]}"#,
            SandboxReply::Stats { containers: vec![stats] },
        ),
        (
            r#"{"reply":"exec","exit_code":1,"message":"x"}"#,
            SandboxReply::Exec(ExecOutcome { exit_code: 1, message: word() }),
        ),
        (r#"{"reply":"failed","failure":"unknown-verb"}"#, failed(Failure::UnknownVerb)),
        (
            r#"{"reply":"failed","failure":"malformed","why":"x"}"#,
            failed(Failure::Malformed { why: word() }),
        ),
        (
            r#"{"reply":"failed","failure":"not-found","id":"x"}"#,
            failed(Failure::NotFound { id: word() }),
        ),
        (
            r#"{"reply":"failed","failure":"unlinkable","message":"x"}"#,
            failed(Failure::Unlinkable { message: word() }),
        ),
        (
            r#"{"reply":"failed","failure":"failed","message":"x"}"#,
            failed(Failure::Failed { message: word() }),
        ),
    ] {
        let text = with_id(&format!("{{\"reply\":{text}}}"));
        assert_eq!(said::<SandboxMessage>(&text), SandboxMessage::Reply(meant));
    }
}

#[test]
fn news_of_a_sandbox_of_version_2_is_understood() {
    let exit = ExitReport {
        exit_code: 1,
        reason: "x".into(),
        message: String::new(),
        started_at: None,
        finished_at: 3,
    };
    for (text, meant) in [
        (r#"{"event":"running","id":"ID","at":4}"#, SandboxEvent::Running { id: id(), at: 4 }),
        (
            r#"{"event":"exited","id":"ID","exit":{"exit_code":1,"reason":"x","message":"",
            "started_at":null,"finished_at":3}}"#,
            SandboxEvent::Exited { id: id(), exit },
        ),
        (r#"{"event":"log-rotated","id":"ID"}"#, SandboxEvent::LogRotated { id: id() }),
        (r#"{"event":"complained","what":"x"}"#, SandboxEvent::Complained { what: "x".into() }),
    ] {
        let text = with_id(&format!("{{\"event\":{text}}}"));
        assert_eq!(said::<SandboxMessage>(&text), SandboxMessage::Event(meant));
    }
}

#[test]
fn a_zygote_of_version_2_is_understood() {
    let reply = ZygoteMessage::Reply;
    for (text, meant) in [
        (r#"{"warm":{"version":2}}"#, ZygoteMessage::Warm { version: 2 }),
        (r#"{"reply":{"reply":"forked","pid":3}}"#, reply(ZygoteReply::Forked { pid: 3 })),
        (
            r#"{"reply":{"reply":"sandboxes","running":[["x",3]]}}"#,
            reply(ZygoteReply::Sandboxes { running: vec![("x".into(), 3)] }),
        ),
        (r#"{"reply":{"reply":"retiring"}}"#, reply(ZygoteReply::Retiring)),
        (
            r#"{"reply":{"reply":"failed","failure":"unknown-verb"}}"#,
            reply(ZygoteReply::Failed(Failure::UnknownVerb)),
        ),
        (
            r#"{"exited":{"id":"x","pid":3,"wait_status":9}}"#,
            ZygoteMessage::Exited { id: "x".into(), pid: 3, wait_status: 9 },
        ),
    ] {
        assert_eq!(said::<ZygoteMessage>(text), meant);
    }
}

/// Stats that are sent to an agent of version 2 say there what it reads.
#[test]
fn what_was_refused_is_told_as_a_sum_and_by_rule() {
    let network = NetworkReport {
        refused: 5,
        refusals: Refusals { policy: 2, bound: 1, ..Refusals::default() },
        ..NetworkReport::default()
    };
    let text = serde_json::to_value(network).unwrap();
    assert_eq!((&text["refused"], &text["refusals"]["policy"]), (&5.into(), &2.into()));
    assert_eq!(network.refused_by_unknown(), 2);
}
