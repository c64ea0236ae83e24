//! Connections that the agent makes to ports of a pod's loopback.

use std::{
    fs::File,
    io::{Read, Write},
    net::TcpStream,
    os::fd::OwnedFd,
};

use krustlet_model::{PodUid, policy::PodPolicy};
use krustlet_protocol::{
    DescriptorName, Failure, PodNetwork, SandboxReply, SandboxRequest, SocketLimits,
};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::{
    fixture::{Make, Sandbox, Zygote},
    guests::wait_until,
    sockets::{http, network, report, serve},
};

/// What is sent to a pod, and what it sends.
struct Visit {
    to_pod: File,
    from_pod: File,
}

fn visit(sandbox: &Sandbox, pod: &str, port: u16) -> Result<Visit, String> {
    let [(input, to_pod), (from_pod, output)] =
        [(); 2].map(|()| pipe_with(PipeFlags::CLOEXEC).unwrap());
    let request = SandboxRequest::Connect { pod: PodUid::new(pod), port };
    let given: [(_, OwnedFd); 2] =
        [(DescriptorName::Stdin, input), (DescriptorName::Stdout, output)];
    match sandbox.connection.ask(request, &given) {
        SandboxReply::Done => Ok(Visit { to_pod: to_pod.into(), from_pod: from_pod.into() }),
        SandboxReply::Failed(Failure::Failed { message }) => Err(message),
        other => panic!("{other:?}"),
    }
}

/// Sends, ends the direction, and reads to the end of the other.
fn exchange(visit: Visit, text: &str) -> String {
    let Visit { mut to_pod, mut from_pod } = visit;
    to_pod.write_all(text.as_bytes()).unwrap();
    drop(to_pod);
    let mut answer = String::new();
    from_pod.read_to_string(&mut answer).unwrap();
    answer
}

pub(crate) fn the_agent_reaches_what_a_pod_keeps_to_itself() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    // No policy is asked, nor the pod's own list.
    let closed = PodNetwork {
        policy: Some(PodPolicy::closed()),
        outbound: Some(Vec::new()),
        ..network(&["10.77.0.1"])
    };
    sandbox.network("one", &closed);
    sandbox.network("two", &network(&["10.77.0.2"]));
    for (port, at) in [("8080", "0.0.0.0"), ("8081", "127.0.0.1"), ("8082", "::1")] {
        serve(&sandbox, "one", &["tcp-echo", port, at]);
    }
    let web = sandbox.start(Make { pod: "one".into(), ..http(8083) });
    sandbox.running(&web);
    assert!(TcpStream::connect("10.77.0.1:8081").is_err());

    for port in 8080..=8082 {
        assert_eq!(exchange(visit(&sandbox, "one", port).unwrap(), "come in"), "come in", "{port}");
    }
    let much = "much ".repeat(1 << 18);
    let answer = {
        let Visit { mut to_pod, mut from_pod } = visit(&sandbox, "one", 8081).unwrap();
        let sent = much.clone();
        let sends = std::thread::spawn(move || to_pod.write_all(sent.as_bytes()).unwrap());
        let mut answer = String::new();
        from_pod.read_to_string(&mut answer).unwrap();
        sends.join().unwrap();
        answer
    };
    assert!(answer == much, "it comes back whole, with {} bytes", answer.len());
    let request = "GET /status?code=418 HTTP/1.0\r\nHost: x\r\n\r\n";
    // An http client that ends its direction has gone, and is not answered.
    let Visit { mut to_pod, mut from_pod } = visit(&sandbox, "one", 8083).unwrap();
    to_pod.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    from_pod.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 418"), "{answer}");

    // Another port, another pod, and one that is not here.
    for (pod, port, why) in [
        ("one", 9, "cannot connect to port 9 of the pod's loopback: the connection was refused"),
        ("one", 0, "cannot connect to port 0 of the pod's loopback: the connection was refused"),
        ("two", 8081, "port 8081 of the pod's loopback: the connection was refused"),
        ("three", 8081, "pod three has no network here"),
    ] {
        let refused = visit(&sandbox, pod, port).err().unwrap();
        assert!(refused.contains(why), "{refused}");
    }
}

pub(crate) fn a_visit_counts_as_a_socket_and_ends_with_either_side() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let limits = SocketLimits { sockets: 4, ..SocketLimits::default() };
    sandbox.network("pod", &PodNetwork { limits, ..network(&["10.77.0.1"]) });
    let server = serve(&sandbox, "pod", &["tcp-echo", "8081", "127.0.0.1"]);
    let sockets = || report(&sandbox).sockets;
    // Whoever looks for a connection has the right to one while he looks.
    let listening = 1;
    wait_until(|| sockets() == listening);
    let one = visit(&sandbox, "pod", 8081).unwrap();
    // The guest's side is one too.
    wait_until(|| sockets() == listening + 2);
    let fills = visit(&sandbox, "pod", 8081).unwrap();
    let full = visit(&sandbox, "pod", 8081).err().unwrap();
    assert!(full.contains("there are too many sockets"), "{full}");

    // Nobody reads it any more, though what is sent has not ended.
    let Visit { to_pod: _unended, from_pod } = one;
    drop(from_pod);
    drop(fills);
    wait_until(|| sockets() == listening);

    let mut last = visit(&sandbox, "pod", 8081).unwrap();
    sandbox.stop(&server, 0);
    sandbox.exit(&server);
    assert_eq!(last.from_pod.read(&mut [0]).unwrap(), 0, "the guest is gone");
    drop(last);
    visit(&sandbox, "pod", 8081).err().unwrap();
}

pub(crate) fn the_agent_reaches_the_loopback_that_a_pod_shares() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let of_host = PodNetwork { is_host: true, shares_loopback: true, ..network(&["10.77.4.6"]) };
    sandbox.network("pod", &of_host);
    serve(&sandbox, "pod", &["tcp-echo", "8095", "127.0.0.1"]);
    serve(&sandbox, "pod", &["tcp-echo", "8096", "::1"]);
    for port in [8095, 8096] {
        assert_eq!(exchange(visit(&sandbox, "pod", port).unwrap(), "host"), "host", "{port}");
    }
    let refused = visit(&sandbox, "pod", 9).err().unwrap();
    assert!(refused.contains("the connection was refused"), "{refused}");
}
