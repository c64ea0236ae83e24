use super::*;
use crate::{
    Failure, MAX_MESSAGE, Packet,
    socket::{pair, read_memfd, receive, send, send_frame},
};

const LIMIT: Duration = Duration::from_secs(20);

/// What a sandbox would do with one end: answer what `answer` says.
fn receive_request(socket: &OwnedFd) -> Option<(Frame<SandboxRequest>, Packet)> {
    let packet = receive(socket.as_fd()).unwrap()?;
    Some((parse_frame(&packet).unwrap(), packet))
}

fn say(socket: &OwnedFd, id: u64, body: SandboxMessage) {
    let frame = Frame { id, descriptors: vec![], body };
    send_frame(socket.as_fd(), &frame, &[]).unwrap();
}

fn rotated(digit: u8) -> SandboxEvent {
    let id = krustlet_model::ContainerId::from_bytes([digit; 32]);
    SandboxEvent::LogRotated { id }
}

#[tokio::test]
async fn each_caller_gets_its_own_reply_whatever_the_order() {
    let (ours, theirs) = pair().unwrap();
    let (caller, mut incoming) = connection::<WithSandbox>(ours).unwrap();
    let peer = tokio::task::spawn_blocking(move || {
        let (first, _) = receive_request(&theirs).unwrap();
        let (second, _) = receive_request(&theirs).unwrap();
        for frame in [second, first] {
            let SandboxRequest::Hello { version } = frame.body else { panic!("{frame:?}") };
            let reply = SandboxReply::Hello { version, pid: 1 };
            say(&theirs, frame.id, SandboxMessage::Reply(reply));
        }
        say(&theirs, 0, SandboxMessage::Event(rotated(1)));
        theirs
    });
    let hello = |version| caller.call(SandboxRequest::Hello { version }, vec![], LIMIT);
    let (one, two, news) = tokio::join!(hello(1), hello(2), incoming.next());
    for (version, answer) in [(1, one), (2, two)] {
        let reply = answer.unwrap().reply;
        assert_eq!(reply, SandboxReply::Hello { version, pid: 1 });
    }
    assert_eq!(news.unwrap(), Some(rotated(1)));
    drop(peer.await.unwrap());
}

#[tokio::test]
async fn descriptors_go_and_come_with_their_names() {
    let (ours, theirs) = pair().unwrap();
    let (caller, mut incoming) = connection::<WithZygote>(ours).unwrap();
    let peer = tokio::task::spawn_blocking(move || {
        let packet = receive(theirs.as_fd()).unwrap().unwrap();
        let frame: Frame<ZygoteRequest> = parse_frame(&packet).unwrap();
        assert_eq!(frame.descriptors, [DescriptorName::Control, DescriptorName::Status]);
        let back = Frame {
            id: frame.id,
            descriptors: vec![DescriptorName::PidFd],
            body: ZygoteMessage::Reply(ZygoteReply::Forked { pid: 5 }),
        };
        send_frame(theirs.as_fd(), &back, &[packet.fds[1].as_fd()]).unwrap();
    });
    let file = |text: &str| crate::socket::memfd(text.as_bytes()).unwrap();
    let request = ZygoteRequest::RunSandbox { id: "a".into(), uid: 1, gid: 1, groups: vec![] };
    let given =
        vec![(DescriptorName::Control, file("control")), (DescriptorName::Status, file("status"))];
    let (answer, news) = tokio::join!(caller.call(request, given, LIMIT), incoming.next());
    assert!(news.unwrap().is_none());
    let mut answer = answer.unwrap();
    assert_eq!(answer.reply, ZygoteReply::Forked { pid: 5 });
    let (name, fd) = answer.fds.remove(0);
    assert_eq!(name, DescriptorName::PidFd);
    assert_eq!(read_memfd(fd, 64).unwrap(), b"status");
    peer.await.unwrap();
}

#[tokio::test]
async fn long_lists_are_taken_and_long_news_is_not() {
    let (ours, theirs) = pair().unwrap();
    let (caller, mut incoming) = connection::<WithSandbox>(ours).unwrap();
    let message = "x".repeat(MAX_MESSAGE);
    let say_long = move |id, body| {
        let frame = Frame { id, descriptors: vec![], body };
        let bytes = serde_json::to_vec(&frame).unwrap();
        crate::socket::send_any_length(theirs.as_fd(), &bytes).unwrap();
    };
    let failure = Failure::Failed { message: message.clone() };
    let reply = SandboxReply::Failed(failure);
    say_long(1, SandboxMessage::Reply(reply.clone()));
    let id = krustlet_model::ContainerId::from_bytes([1; 32]);
    let exit = crate::ExitReport {
        exit_code: 1,
        reason: "Error".into(),
        message,
        started_at: None,
        finished_at: 1,
    };
    say_long(0, SandboxMessage::Event(SandboxEvent::Exited { id, exit }));
    let call = caller.call(SandboxRequest::Stats, vec![], LIMIT);
    let (answer, news) = tokio::join!(call, incoming.next());
    assert_eq!(answer.unwrap().reply, reply);
    assert_eq!(news.unwrap_err().kind(), io::ErrorKind::InvalidData);
}

/// Says the same long reply so often.
fn say_long(socket: &OwnedFd, id: u64, times: usize) {
    let failure = Failure::Failed { message: "x".repeat(MAX_MESSAGE) };
    let body = SandboxMessage::Reply(SandboxReply::Failed(failure));
    let bytes = serde_json::to_vec(&Frame { id, descriptors: vec![], body }).unwrap();
    for _ in 0..times {
        crate::socket::send_any_length(socket.as_fd(), &bytes).unwrap();
    }
}

#[tokio::test]
async fn what_nobody_asked_for_ends_the_connection() {
    type Says = fn(&OwnedFd, SandboxMessage);
    let done = || SandboxMessage::Reply(SandboxReply::Done);
    let says: [(&str, Says); 4] = [
        ("long replies", |theirs, _| say_long(theirs, 99, 3)),
        ("a reply", |theirs, done| say(theirs, 99, done)),
        ("a second reply", |theirs, done| {
            say(theirs, 1, done.clone());
            say(theirs, 1, done);
        }),
        ("one that is not understood", |theirs, _| {
            let reply = br#"{"id":99,"body":{"reply":{"reply":"perhaps"}}}"#;
            send(theirs.as_fd(), reply, &[]).unwrap();
        }),
    ];
    for (what, say) in says {
        for is_asked in [false, true] {
            let (ours, theirs) = pair().unwrap();
            let (caller, mut incoming) = connection::<WithSandbox>(ours).unwrap();
            let call = async {
                if is_asked {
                    let _ = caller.call(SandboxRequest::Stats, vec![], LIMIT).await;
                }
            };
            let news = async {
                say(&theirs, done());
                timeout(LIMIT, incoming.next()).await.expect("it ends")
            };
            let ((), news) = tokio::join!(call, news);
            assert_eq!(news.expect_err(what).kind(), io::ErrorKind::InvalidData, "{what}");
            let late = caller.call(SandboxRequest::Stats, vec![], LIMIT).await;
            assert!(matches!(late, Err(CallError::Gone)), "{what}: {late:?}");
        }
    }
}

/// Asks, and gives up once the peer has read it.
async fn give_up(caller: &Caller<WithSandbox>, theirs: OwnedFd) -> OwnedFd {
    let read = tokio::task::spawn_blocking(move || {
        receive_request(&theirs).unwrap();
        theirs
    });
    tokio::select! {
        answer = caller.call(SandboxRequest::Stats, vec![], LIMIT) => panic!("{answer:?}"),
        theirs = read => theirs.unwrap(),
    }
}

#[tokio::test]
async fn an_answer_to_a_call_that_was_given_up_is_passed_over_once() {
    let (ours, mut theirs) = pair().unwrap();
    let (caller, mut incoming) = connection::<WithSandbox>(ours).unwrap();
    for id in 1..=2 {
        theirs = give_up(&caller, theirs).await;
        say_long(&theirs, id, 1);
    }
    say(&theirs, 0, SandboxMessage::Event(rotated(1)));
    assert_eq!(incoming.next().await.unwrap(), Some(rotated(1)));
    say(&theirs, 1, SandboxMessage::Reply(SandboxReply::Done));
    assert_eq!(incoming.next().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[tokio::test]
async fn calls_that_were_never_sent_push_out_none_that_was() {
    let (ours, theirs) = pair().unwrap();
    let (caller, mut incoming) = connection::<WithSandbox>(ours).unwrap();
    let theirs = give_up(&caller, theirs).await;
    // Until there is no room for another.
    while send_with(caller.socket(), b"noise", &[], SendFlags::DONTWAIT).is_ok() {}
    for _ in 0..=GIVEN_UP {
        let call = std::pin::pin!(caller.call(SandboxRequest::Stats, vec![], LIMIT));
        assert!(once(call).await.is_none(), "it waits for room");
    }
    say(&theirs, 1, SandboxMessage::Reply(SandboxReply::Done));
    say(&theirs, 0, SandboxMessage::Event(rotated(1)));
    assert_eq!(incoming.next().await.unwrap(), Some(rotated(1)));
}

#[tokio::test]
async fn a_peer_of_which_nothing_is_understood_is_let_go() {
    let (ours, theirs) = pair().unwrap();
    let (caller, mut incoming) = connection::<WithSandbox>(ours).unwrap();
    let peer = tokio::task::spawn_blocking(move || {
        let mut sent = 0;
        while sent < 2 * STRANGE && send(theirs.as_fd(), b"noise", &[]).is_ok() {
            sent += 1;
        }
    });
    assert_eq!(incoming.next().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    drop((incoming, caller));
    peer.await.unwrap();
}

#[tokio::test]
async fn a_long_reply_is_not_lost_by_who_stops_waiting_for_news() {
    let (ours, theirs) = pair().unwrap();
    let (caller, mut incoming) = connection::<WithSandbox>(ours).unwrap();
    let mut call = std::pin::pin!(caller.call(SandboxRequest::Stats, vec![], LIMIT));
    assert!(once(call.as_mut()).await.is_none(), "it is asked");
    say_long(&theirs, 1, 1);
    let answer = loop {
        if let Some(news) = once(std::pin::pin!(incoming.next())).await {
            panic!("nothing else was said: {news:?}");
        }
        if let Some(answer) = once(call.as_mut()).await {
            break answer;
        }
        tokio::task::yield_now().await;
    };
    assert!(matches!(answer.unwrap().reply, SandboxReply::Failed(Failure::Failed { .. })));
}

/// What a future comes to if it is asked once.
async fn once<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        std::task::Poll::Ready(done) => std::task::Poll::Ready(Some(done)),
        std::task::Poll::Pending => std::task::Poll::Ready(None),
    })
    .await
}

#[tokio::test]
async fn a_peer_that_goes_ends_every_call() {
    let (ours, theirs) = pair().unwrap();
    let (caller, mut incoming) = connection::<WithSandbox>(ours).unwrap();
    let peer = tokio::task::spawn_blocking(move || drop(receive_request(&theirs)));
    let call = caller.call(SandboxRequest::Stats, vec![], LIMIT);
    let (answer, news) = tokio::join!(call, incoming.next());
    assert!(matches!(answer, Err(CallError::Gone)), "{answer:?}");
    assert!(news.unwrap().is_none());
    peer.await.unwrap();
    let late = caller.call(SandboxRequest::Stats, vec![], LIMIT).await;
    assert!(matches!(late, Err(CallError::Gone)), "{late:?}");
}

#[tokio::test]
async fn nobody_waits_once_the_reader_is_dropped() {
    let (ours, _theirs) = pair().unwrap();
    let (caller, incoming) = connection::<WithSandbox>(ours).unwrap();
    let call = caller.call(SandboxRequest::Stats, vec![], LIMIT);
    let (answer, ()) = tokio::join!(call, async { drop(incoming) });
    assert!(matches!(answer, Err(CallError::Gone)), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_given_up_after_the_limit() {
    let (ours, _theirs) = pair().unwrap();
    let (caller, mut incoming) = connection::<WithSandbox>(ours).unwrap();
    let call = caller.call(SandboxRequest::Stats, vec![], LIMIT);
    let answer = tokio::select! {
        answer = call => answer,
        _ = incoming.next() => panic!("nothing was said"),
    };
    assert!(matches!(answer, Err(CallError::TimedOut { .. })));
    let left = caller.0.waiting().replies.as_ref().map(HashMap::len);
    assert_eq!(left, Some(0), "a caller that gave up leaves nothing behind");
}

#[tokio::test]
async fn what_is_not_understood_harms_only_its_caller() {
    let (ours, theirs) = pair().unwrap();
    let (caller, mut incoming) = connection::<WithSandbox>(ours).unwrap();
    let peer = tokio::task::spawn_blocking(move || {
        let (frame, _) = receive_request(&theirs).unwrap();
        let news = br#"{"id":0,"body":{"Event":{"event":"eclipse"}}}"#;
        send(theirs.as_fd(), news, &[]).unwrap();
        send(theirs.as_fd(), b"noise", &[]).unwrap();
        let reply = format!(r#"{{"id":{},"body":{{"reply":{{"reply":"perhaps"}}}}}}"#, frame.id);
        send(theirs.as_fd(), reply.as_bytes(), &[]).unwrap();
        let (frame, _) = receive_request(&theirs).unwrap();
        let failed = SandboxReply::Failed(Failure::UnknownVerb);
        say(&theirs, frame.id, SandboxMessage::Reply(failed));
    });
    let calls = async {
        let odd = caller.call(SandboxRequest::Stats, vec![], LIMIT).await;
        assert!(matches!(odd, Err(CallError::NotUnderstood(_))), "{odd:?}");
        caller.call(SandboxRequest::Stats, vec![], LIMIT).await
    };
    let (answer, news) = tokio::join!(calls, incoming.next());
    let reply = answer.unwrap().reply;
    assert_eq!(reply, SandboxReply::Failed(Failure::UnknownVerb));
    assert!(news.unwrap().is_none());
    peer.await.unwrap();
}

#[tokio::test]
async fn a_full_socket_makes_callers_wait_and_loses_nothing() {
    const CALLS: u32 = 3000;
    let (ours, theirs) = pair().unwrap();
    let (caller, mut incoming) = connection::<WithSandbox>(ours).unwrap();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let peer = tokio::task::spawn_blocking(move || {
        wait.recv().unwrap();
        while let Some((frame, _)) = receive_request(&theirs) {
            say(&theirs, frame.id, SandboxMessage::Reply(SandboxReply::Done));
        }
    });
    let mut calls = tokio::task::JoinSet::new();
    for version in 0..CALLS {
        let caller = caller.clone();
        calls.spawn(async move {
            let request = SandboxRequest::Hello { version };
            caller.call(request, vec![], LIMIT).await
        });
    }
    // Every call has been polled, and so sent or refused, before this is.
    tokio::task::yield_now().await;
    go.send(()).unwrap();
    let all = async {
        while let Some(done) = calls.join_next().await {
            assert_eq!(done.unwrap().unwrap().reply, SandboxReply::Done);
        }
    };
    tokio::select! {
        () = all => {}
        news = incoming.next() => panic!("nothing else was said: {news:?}"),
    }
    drop((caller, incoming));
    peer.await.unwrap();
}
