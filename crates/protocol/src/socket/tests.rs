use std::io::Read;

use krustlet_model::{ContainerId, PodUid};
use proptest::prelude::*;

use super::*;
use crate::{
    ContainerReport, DescriptorName, ExecOutcome, ExitReport, Failure, Limits, NetworkReport,
    Refusals, RunState, SandboxEvent, SandboxMessage, SandboxReply, SandboxRequest, StatsReport,
    ZygoteMessage, ZygoteReply, ZygoteRequest,
};

fn file(text: &str) -> OwnedFd {
    memfd(text.as_bytes()).unwrap()
}

#[test]
fn a_packet_brings_its_descriptors_in_order() {
    let (a, b) = pair().unwrap();
    let files = [file("one"), file("two"), file("three")];
    send(a.as_fd(), b"take these", &lend(&files)).unwrap();

    let packet = receive(b.as_fd()).unwrap().unwrap();
    assert_eq!(packet.bytes, b"take these");
    let texts: Vec<_> = packet.fds.into_iter().map(|fd| read_memfd(fd, 64).unwrap()).collect();
    assert_eq!(texts, [b"one".to_vec(), b"two".to_vec(), b"three".to_vec()]);
}

#[test]
fn the_most_descriptors_fit_and_one_more_is_refused() {
    let (a, b) = pair().unwrap();
    let one = file("x");
    let most = vec![one.as_fd(); MAX_DESCRIPTORS];
    send(a.as_fd(), b"m", &most).unwrap();
    assert_eq!(receive(b.as_fd()).unwrap().unwrap().fds.len(), MAX_DESCRIPTORS);

    let more = vec![one.as_fd(); MAX_DESCRIPTORS + 1];
    assert_eq!(send(a.as_fd(), b"m", &more).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn what_is_cut_is_an_error_and_the_next_packet_is_whole() {
    let (a, b) = pair().unwrap();
    rustix::net::send(&a, &vec![b'x'; MAX_MESSAGE + 1], SendFlags::empty()).unwrap();
    send(a.as_fd(), b"whole", &[]).unwrap();
    assert_eq!(receive(b.as_fd()).unwrap_err().kind(), ErrorKind::InvalidData);
    assert_eq!(receive(b.as_fd()).unwrap().unwrap().bytes, b"whole");
}

#[test]
fn a_peer_that_is_gone_is_none_and_sending_to_it_is_an_error() {
    let (a, b) = pair().unwrap();
    // Left unread, so that the kernel reports a reset before the last words.
    send(b.as_fd(), b"unread", &[]).unwrap();
    send(a.as_fd(), b"last words", &[]).unwrap();
    drop(a);
    assert_eq!(receive(b.as_fd()).unwrap().unwrap().bytes, b"last words");
    assert!(receive(b.as_fd()).unwrap().is_none());
    assert_eq!(send(b.as_fd(), b"hello?", &[]).unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[test]
fn an_empty_message_and_a_long_one_are_refused() {
    let (a, _b) = pair().unwrap();
    for bytes in [Vec::new(), vec![b'x'; MAX_MESSAGE + 1]] {
        let error = send(a.as_fd(), &bytes, &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn a_socket_may_be_bound_anew_and_refuses_until_somebody_listens() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    drop(bind(&path).unwrap());
    let socket = bind(&path).unwrap();
    assert_eq!(connect(&path).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    rustix::net::listen(&socket, 1).unwrap();
    connect(&path).unwrap();
}

#[test]
fn a_path_too_long_is_refused_with_words() {
    let error = bind(&Path::new("/").join("x".repeat(MAX_PATH))).unwrap_err();
    assert!(error.to_string().contains("shorter state directory"), "{error}");
}

#[test]
fn a_sealed_file_cannot_be_written() {
    let fd = file("fixed");
    let mut file = File::from(fd);
    assert!(file.write_all(b"x").is_err());
    assert!(file.set_len(0).is_err());
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "", "the offset stands at the end, and read_memfd does not care");
    assert_eq!(read_memfd(file.into(), 5).unwrap(), b"fixed");
}

#[test]
fn a_file_beyond_the_limit_is_not_read() {
    assert_eq!(read_memfd(file("12345"), 4).unwrap_err().kind(), ErrorKind::InvalidData);
    assert_eq!(memfd(&vec![0; MAX_SPEC + 1]).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_verb_of_a_newer_version_keeps_its_number() {
    let bytes = br#"{"id":7,"body":{"verb":"dance","tempo":120},"mood":"gay"}"#.to_vec();
    let error = parse_frame::<SandboxRequest>(&Packet { bytes, fds: vec![] }).unwrap_err();
    assert!(matches!(error, ParseError::Unknown { id: 7, .. }), "{error}");
    assert_eq!(error.frame_id(), Some(7));
}

#[test]
fn a_descriptor_of_a_newer_version_keeps_the_number() {
    let bytes = br#"{"id":8,"descriptors":["camera"],"body":{"verb":"shutdown"}}"#.to_vec();
    let packet = Packet { bytes, fds: vec![file("x")] };
    let error = parse_frame::<SandboxRequest>(&packet).unwrap_err();
    assert_eq!(error.frame_id(), Some(8));
}

#[test]
fn unknown_fields_are_ignored() {
    let bytes = br#"{"id":1,"body":{"verb":"hello","version":9,"colour":"red"},"x":1}"#.to_vec();
    let frame = parse_frame::<SandboxRequest>(&Packet { bytes, fds: vec![] }).unwrap();
    assert_eq!(frame.body, SandboxRequest::Hello { version: 9 });
}

#[test]
fn a_frame_must_name_each_descriptor() {
    let (a, b) = pair().unwrap();
    let frame =
        Frame { id: 3, descriptors: vec![DescriptorName::Log], body: SandboxRequest::Stats };
    let error = send_frame(a.as_fd(), &frame, &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);

    let bytes = serde_json::to_vec(&frame).unwrap();
    send(a.as_fd(), &bytes, &[]).unwrap();
    let packet = receive(b.as_fd()).unwrap().unwrap();
    let error = parse_frame::<SandboxRequest>(&packet).unwrap_err();
    assert!(matches!(error, ParseError::Descriptors { id: 3, named: 1, came: 0 }), "{error}");
}

fn id() -> impl Strategy<Value = ContainerId> {
    any::<[u8; 32]>().prop_map(ContainerId::from_bytes)
}

fn pod() -> impl Strategy<Value = PodUid> {
    "[a-z0-9-]{1,36}".prop_map(PodUid::new)
}

fn failure() -> impl Strategy<Value = Failure> {
    prop_oneof![
        Just(Failure::UnknownVerb),
        any::<String>().prop_map(|why| Failure::Malformed { why }),
        any::<String>().prop_map(|id| Failure::NotFound { id }),
        any::<String>().prop_map(|message| Failure::Unlinkable { message }),
        any::<String>().prop_map(|message| Failure::Failed { message }),
    ]
}

fn exit() -> impl Strategy<Value = ExitReport> {
    (any::<i32>(), any::<String>(), any::<String>(), any::<Option<i64>>(), any::<i64>()).prop_map(
        |(exit_code, reason, message, started_at, finished_at)| ExitReport {
            exit_code,
            reason,
            message,
            started_at,
            finished_at,
        },
    )
}

fn report() -> impl Strategy<Value = ContainerReport> {
    let state = prop_oneof![
        Just(RunState::Created),
        any::<i64>().prop_map(|started_at| RunState::Running { started_at }),
        exit().prop_map(RunState::Exited),
    ];
    (id(), pod(), state).prop_map(|(id, pod, state)| ContainerReport { id, pod, state })
}

fn stats() -> impl Strategy<Value = StatsReport> {
    let network = any::<([u64; 5], [u64; 4], u32)>().prop_map(|(counts, by, sockets)| {
        let [received_bytes, sent_bytes, opened, accepted, refused] = counts;
        let [destination, policy, list, bound] = by;
        let refusals = Refusals { destination, policy, list, bound };
        NetworkReport { received_bytes, sent_bytes, opened, accepted, refused, refusals, sockets }
    });
    (id(), pod(), any::<[u64; 3]>(), network).prop_map(
        |(id, pod, [memory_bytes, cpu_ns, log_dropped_bytes], network)| StatsReport {
            id,
            pod,
            memory_bytes,
            cpu_ns,
            log_dropped_bytes,
            network,
        },
    )
}

fn zygote_request() -> impl Strategy<Value = ZygoteRequest> {
    prop_oneof![
        (any::<String>(), any::<[u32; 2]>(), any::<Vec<u32>>()).prop_map(
            |(id, [uid, gid], groups)| { ZygoteRequest::RunSandbox { id, uid, gid, groups } }
        ),
        Just(ZygoteRequest::List),
        Just(ZygoteRequest::Retire),
    ]
}

fn zygote_message() -> impl Strategy<Value = ZygoteMessage> {
    let reply = prop_oneof![
        any::<i32>().prop_map(|pid| ZygoteReply::Forked { pid }),
        any::<Vec<(String, i32)>>().prop_map(|running| ZygoteReply::Sandboxes { running }),
        Just(ZygoteReply::Retiring),
        failure().prop_map(ZygoteReply::Failed),
    ];
    prop_oneof![
        any::<u32>().prop_map(|version| ZygoteMessage::Warm { version }),
        reply.prop_map(ZygoteMessage::Reply),
        (any::<String>(), any::<[i32; 2]>()).prop_map(|(id, [pid, wait_status])| {
            ZygoteMessage::Exited { id, pid, wait_status }
        }),
    ]
}

fn sandbox_request() -> impl Strategy<Value = SandboxRequest> {
    prop_oneof![
        any::<u32>().prop_map(|version| SandboxRequest::Hello { version }),
        pod().prop_map(|pod| SandboxRequest::SetPodNetwork { pod }),
        Just(SandboxRequest::CreateContainer),
        id().prop_map(|id| SandboxRequest::StartContainer { id }),
        (id(), any::<[Option<u64>; 2]>()).prop_map(|(id, [memory_bytes, cpu_millis])| {
            SandboxRequest::UpdateContainer { id, limits: Limits { memory_bytes, cpu_millis } }
        }),
        (id(), any::<u64>())
            .prop_map(|(id, grace_ms)| SandboxRequest::StopContainer { id, grace_ms }),
        id().prop_map(|id| SandboxRequest::RemoveContainer { id }),
        Just(SandboxRequest::ListContainers),
        Just(SandboxRequest::Stats),
        (id(), any::<Vec<String>>()).prop_map(|(id, args)| SandboxRequest::Exec { id, args }),
        id().prop_map(|id| SandboxRequest::NextLog { id }),
        pod().prop_map(|pod| SandboxRequest::Listeners { pod }),
        pod().prop_map(|pod| SandboxRequest::StopPod { pod }),
        Just(SandboxRequest::Shutdown),
    ]
}

fn sandbox_message() -> impl Strategy<Value = SandboxMessage> {
    let reply = prop_oneof![
        Just(SandboxReply::Done),
        any::<[u32; 2]>().prop_map(|[version, pid]| SandboxReply::Hello { version, pid }),
        prop::collection::vec(report(), 0..4)
            .prop_map(|containers| SandboxReply::Containers { containers }),
        prop::collection::vec(stats(), 0..4)
            .prop_map(|containers| SandboxReply::Stats { containers }),
        (any::<i32>(), any::<String>()).prop_map(|(exit_code, message)| {
            SandboxReply::Exec(ExecOutcome { exit_code, message })
        }),
        any::<Vec<u16>>().prop_map(|ports| SandboxReply::Listeners { ports }),
        failure().prop_map(SandboxReply::Failed),
    ];
    let event = prop_oneof![
        (id(), any::<i64>()).prop_map(|(id, at)| SandboxEvent::Running { id, at }),
        (id(), exit()).prop_map(|(id, exit)| SandboxEvent::Exited { id, exit }),
        id().prop_map(|id| SandboxEvent::LogRotated { id }),
        any::<String>().prop_map(|what| SandboxEvent::Complained { what }),
        pod().prop_map(|pod| SandboxEvent::Listening { pod }),
    ];
    prop_oneof![reply.prop_map(SandboxMessage::Reply), event.prop_map(SandboxMessage::Event),]
}

/// Sends a frame through a real socket and reads it back.
fn through<T>(id: u64, body: T) -> Frame<T>
where
    T: Serialize + DeserializeOwned + Clone + std::fmt::Debug + PartialEq,
{
    let (a, b) = pair().unwrap();
    let frame = Frame { id, descriptors: vec![], body };
    send_frame(a.as_fd(), &frame, &[]).unwrap();
    let back = parse_frame(&receive(b.as_fd()).unwrap().unwrap()).unwrap();
    assert_eq!(back, frame);
    back
}

#[test]
fn a_message_of_any_length_arrives() {
    let (a, b) = pair().unwrap();
    for length in [1, MAX_MESSAGE, MAX_MESSAGE + 1, 5 << 20] {
        let bytes = vec![b'x'; length];
        send_any_length(a.as_fd(), &bytes).unwrap();
        let packet = receive(b.as_fd()).unwrap().unwrap().unfold().unwrap();
        assert_eq!((packet.bytes.len(), packet.fds.len()), (length, 0));
        assert_eq!(packet.bytes, bytes);
    }
    let error = send_any_length(a.as_fd(), &vec![0; MAX_FOLDED + 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn what_is_not_understood_is_not_repeated_at_length() {
    let odd = "ä".repeat(1 << 20);
    let bytes = format!(r#"{{"id":7,"body":{{"reply":{{"reply":"{odd}"}}}}}}"#).into_bytes();
    let error = parse_frame::<SandboxMessage>(&Packet { bytes, fds: vec![] }).unwrap_err();
    assert_eq!(error.frame_id(), Some(7));
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("ää") && source.len() < 1024, "{}", source.len());
}

#[test]
fn a_message_in_a_file_that_may_change_is_refused() {
    let disk = OwnedFd::from(tempfile::tempfile().unwrap());
    let (pipe, _end) = rustix::pipe::pipe().unwrap();
    for fd in [disk, pipe] {
        let packet = Packet { bytes: FOLDED.to_vec(), fds: vec![fd] };
        assert_eq!(packet.unfold().unwrap_err().kind(), ErrorKind::InvalidData);
    }
}

#[test]
fn a_message_whose_file_was_lost_is_an_error() {
    let packet = Packet { bytes: FOLDED.to_vec(), fds: vec![] };
    assert_eq!(packet.unfold().unwrap_err().kind(), ErrorKind::InvalidData);
}

proptest! {
    #[test]
    fn any_bytes_are_a_frame_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let packet = Packet { bytes, fds: vec![] };
        let _ = parse_frame::<ZygoteRequest>(&packet);
        let _ = parse_frame::<ZygoteMessage>(&packet);
        let _ = parse_frame::<SandboxRequest>(&packet);
        let _ = parse_frame::<SandboxMessage>(&packet);
    }

    /// Nearer to the real thing than bytes: a sound frame with a bite out of it.
    #[test]
    fn a_damaged_frame_is_a_frame_or_an_error(
        message in sandbox_message(), at in any::<prop::sample::Index>(), with in any::<u8>(),
    ) {
        let frame = Frame { id: 1, descriptors: vec![], body: message };
        let mut bytes = serde_json::to_vec(&frame).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = with;
        let _ = parse_frame::<SandboxMessage>(&Packet { bytes, fds: vec![] });
    }

    #[test]
    fn every_zygote_request_arrives_as_it_was_sent(id: u64, body in zygote_request()) {
        through(id, body);
    }

    #[test]
    fn every_zygote_message_arrives_as_it_was_sent(id: u64, body in zygote_message()) {
        through(id, body);
    }

    #[test]
    fn every_sandbox_request_arrives_as_it_was_sent(id: u64, body in sandbox_request()) {
        through(id, body);
    }

    #[test]
    fn every_sandbox_message_arrives_as_it_was_sent(id: u64, body in sandbox_message()) {
        through(id, body);
    }
}
