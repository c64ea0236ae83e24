//! What a pod listens on is lent to the agent, which keeps those out whom policies
//! refuse: this program is the agent.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
};

use krustlet_model::{
    policy::{AddressRange, PodPolicy, PolicyRule, PortRange},
    services::Transport,
};
use krustlet_protocol::{ListenPort, MAX_LISTENERS, PodNetwork, SocketLimits};
use krustlet_runtime::filter_listeners;
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, getpeername, sockopt},
};

use crate::{
    fixture::{LIMIT, Make, Sandbox, Zygote},
    guests::wait_until,
    place,
    sockets::{http, network, serve},
};

const SERVER: &str = "10.77.0.1";
const FRIEND: &str = "10.77.0.2";
const STRANGER: &str = "10.77.0.3";

/// A client of a pod that has begun to connect.
struct Client(OwnedFd);

impl Client {
    fn new(from: &str, to: &str) -> Self {
        let (from, to) =
            (SocketAddr::new(from.parse().unwrap(), 0), to.parse::<SocketAddr>().unwrap());
        let family = if to.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = SocketType::STREAM;
        let socket = rustix::net::socket_with(family, kind, flags, None).unwrap();
        rustix::net::bind(&socket, &from).unwrap();
        match rustix::net::connect(&socket, &to) {
            Ok(()) | Err(Errno::INPROGRESS) => Self(socket),
            Err(error) => panic!("{to}: {error}"),
        }
    }

    fn is_connected(&self) -> bool {
        getpeername(&self.0).is_ok()
    }

    /// Waits until it is connected.
    fn connected(self) -> TcpStream {
        wait_until(|| self.is_connected());
        let stream = TcpStream::from(self.0);
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }
}

fn is_echoed(stream: &mut TcpStream) {
    stream.write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
}

/// Lets in one address, at one port.
fn only(address: &str, port: u16) -> PodPolicy {
    let ports = Some(vec![PortRange { protocol: Transport::Tcp, first: port, last: port }]);
    let peers = Some(vec![AddressRange::one(address.parse().unwrap())]);
    PodPolicy { ingress: Some(vec![PolicyRule { peers, ports }]), ..PodPolicy::closed() }
}

fn under(policy: PodPolicy) -> PodNetwork {
    PodNetwork { policy: Some(policy), ..network(&[SERVER]) }
}

/// What an agent does when a pod's network is another one.
fn set(sandbox: &Sandbox, network: &PodNetwork) {
    sandbox.network("pod", network);
    filter_listeners(network, sandbox.listeners("pod")).unwrap();
}

/// What it does when a pod listens.
fn heard(sandbox: &Sandbox, network: &PodNetwork) {
    sandbox.listening("pod");
    filter_listeners(network, sandbox.listeners("pod")).unwrap();
}

pub(crate) fn whom_policies_refuse_does_not_connect() {
    for address in ["fd00:77::2", "fd00:77::3"] {
        place::ipv6(address.parse().unwrap());
    }
    let zygote = Zygote::start();
    for (server, friend, stranger) in
        [(SERVER, FRIEND, STRANGER), ("fd00:77::1", "fd00:77::2", "fd00:77::3")]
    {
        let sandbox = zygote.sandbox();
        let under = |policy| PodNetwork { policy: Some(policy), ..network(&[server]) };
        let ip = server.parse().unwrap();
        let at = &SocketAddr::new(ip, 8080).to_string();
        set(&sandbox, &under(only(friend, 8080)));
        serve(&sandbox, "pod", &["tcp-echo", "8080", server]);
        heard(&sandbox, &under(only(friend, 8080)));
        let refused = Client::new(stranger, at);
        let mut taken = Client::new(friend, at).connected();
        is_echoed(&mut taken);
        assert!(!refused.is_connected(), "its packet is dropped");
        // What is open goes on, and whoever asks still is let in when policies are
        // others.
        set(&sandbox, &under(only(stranger, 8080)));
        is_echoed(&mut taken);
        let other = Client::new(friend, at);
        let mut late = refused.connected();
        is_echoed(&mut late);
        assert!(!other.is_connected());
        set(&sandbox, &network(&[server]));
        is_echoed(&mut Client::new(friend, at).connected());
        for mut open in [taken, late, other.connected()] {
            is_echoed(&mut open);
        }
    }
}

pub(crate) fn whom_policies_refuse_takes_no_place() {
    /// More than wait for a guest that does not say how many may.
    const MANY: usize = 300;
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let at = &format!("{SERVER}:8080");
    // The listener is all that it may have: it takes no connection.
    let busy = PodNetwork {
        limits: SocketLimits { sockets: 1, ..SocketLimits::default() },
        ..under(only(FRIEND, 8080))
    };
    set(&sandbox, &busy);
    serve(&sandbox, "pod", &["tcp-echo", "8080"]);
    heard(&sandbox, &busy);
    let strangers: Vec<_> = (0..MANY).map(|_| Client::new(STRANGER, at)).collect();
    let mut friend = Client::new(FRIEND, at).connected();
    assert!(strangers.iter().all(|stranger| !stranger.is_connected()));
    sandbox.network("pod", &under(only(FRIEND, 8080)));
    is_echoed(&mut friend);
}

pub(crate) fn a_filter_is_of_the_pods_port_wherever_that_is() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    // A port of the node, at all its addresses, that leads to another of the pod.
    let handed = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = handed.local_addr().unwrap().port();
    let of_node = &format!("10.77.9.9:{port}");
    let of_pod = under(only(FRIEND, 8080));
    set(&sandbox, &of_pod);
    let sleeper = sandbox.start(Make {
        listener: Some(handed),
        listener_port: Some(8080),
        ..Make::module("sleep", &["x"])
    });
    sandbox.running(&sleeper);
    let server = serve(&sandbox, "pod", &["tcp-echo", "8080"]);
    heard(&sandbox, &of_pod);
    for at in [&format!("{SERVER}:8080"), of_node] {
        let stranger = Client::new(STRANGER, at);
        is_echoed(&mut Client::new(FRIEND, at).connected());
        assert!(!stranger.is_connected(), "{at}");
    }
    // From the node's own loopback comes the node.
    is_echoed(&mut Client::new("127.0.0.1", &format!("127.0.0.1:{port}")).connected());
    // That of the node keeps its filter while nobody listens, as policies are then.
    sandbox.stop(&server, 0);
    sandbox.exit(&server);
    set(&sandbox, &under(only(STRANGER, 8080)));
    serve(&sandbox, "pod", &["tcp-echo", "8080"]);
    let friend = Client::new(FRIEND, of_node);
    is_echoed(&mut Client::new(STRANGER, of_node).connected());
    assert!(!friend.is_connected());
    // Its filter goes with the policies, though it is told of by none.
    sandbox.listening("pod");
    set(&sandbox, &network(&[SERVER]));
    is_echoed(&mut friend.connected());
}

pub(crate) fn listeners_of_all_guests_are_lent() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let closed = under(PodPolicy::closed());
    set(&sandbox, &closed);
    assert!(sandbox.listeners("pod").is_empty() && sandbox.listeners("unknown").is_empty());
    let ports = |port| vec![ListenPort { name: None, port }];
    let net3 = |port: &str| Make::command("net3.wasm", &["net3", "tcp-echo", port]);
    serve(&sandbox, "pod", &["tcp-echo", "8080"]);
    sandbox.start(net3("8081"));
    sandbox.start(Make { listen_ports: ports(8082), ..Make::module("c-echo.wasm", &["echo"]) });
    sandbox.start(http(8083));
    let lent = || {
        let mut ports: Vec<_> = sandbox.listeners("pod").iter().map(|(port, _)| *port).collect();
        ports.sort_unstable();
        ports
    };
    wait_until(|| lent() == [8080, 8081, 8082, 8083]);
    for (port, socket) in sandbox.listeners("pod") {
        let local = rustix::net::getsockname(&socket).unwrap();
        let local = SocketAddr::try_from(local).unwrap();
        assert_eq!(local, SocketAddr::new(SERVER.parse().unwrap(), port));
        assert!(sockopt::socket_acceptconn(&socket).unwrap());
    }
    // Of very many some.
    let many: Vec<_> = (0..MAX_LISTENERS)
        .map(|number| ListenPort { name: None, port: 9000 + u16::try_from(number).unwrap() })
        .collect();
    sandbox.start(Make { listen_ports: many, ..Make::module("c-echo.wasm", &["echo"]) });
    wait_until(|| lent().len() == MAX_LISTENERS);
    assert!(lent().starts_with(&[8080, 8081, 8082, 8083]), "those that were there first");
}

pub(crate) fn a_port_is_listened_on_again_at_once_though_it_is_lent() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let closed = under(PodPolicy::closed());
    set(&sandbox, &closed);
    for _ in 0..3 {
        let server = serve(&sandbox, "pod", &["tcp-echo", "8080"]);
        sandbox.listening("pod");
        // An agent that takes its time.
        let lent = sandbox.listeners("pod");
        assert_eq!(lent.len(), 1);
        sandbox.stop(&server, 0);
        sandbox.exit(&server);
        let again = serve(&sandbox, "pod", &["tcp-echo", "8080"]);
        drop(lent);
        sandbox.stop(&again, 0);
        sandbox.exit(&again);
        // That of the second.
        sandbox.listening("pod");
        assert!(sandbox.listeners("pod").is_empty());
    }
}
