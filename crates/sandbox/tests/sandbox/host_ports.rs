//! Ports of the node that lead to a pod: datagrams by sockets that were handed over.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};

use krustlet_model::{
    ContainerId,
    policy::{AddressRange, PodPolicy, PolicyRule, PortRange},
    services::Transport,
};
use krustlet_protocol::PodNetwork;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::{
    fixture::{LIMIT, Make, Sandbox, Zygote},
    guests::wait_until,
    sockets::{network, report},
};

/// The port of the containers.
const PORT: u16 = 5353;

/// One at a port that is free.
fn everywhere(family: AddressFamily) -> (u16, UdpSocket) {
    (PORT, everywhere_at(family, 0))
}

/// A socket at all addresses of the machine of its family, as an agent binds them.
fn everywhere_at(family: AddressFamily, port: u16) -> UdpSocket {
    let socket =
        rustix::net::socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap();
    let all: IpAddr = if family == AddressFamily::INET6 {
        sockopt::set_ipv6_v6only(&socket, true).unwrap();
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        std::net::Ipv4Addr::UNSPECIFIED.into()
    };
    rustix::net::bind(&socket, &SocketAddr::new(all, port)).unwrap();
    socket.into()
}

fn port_of((_, socket): &(u16, UdpSocket)) -> u16 {
    socket.local_addr().unwrap().port()
}

/// Starts a guest that sends each datagram back, of either WASI.
fn echoes(
    sandbox: &Sandbox,
    guest: &str,
    ip: &str,
    datagrams: Vec<(u16, UdpSocket)>,
) -> ContainerId {
    let command = Make::command(guest, &["net", "udp-echo", &PORT.to_string(), ip]);
    let id = sandbox.start(Make { datagrams, ..command });
    wait_until(|| sandbox.output(&id).contains("listening on"));
    id
}

/// A client that has sent something from one address to another.
fn asks(from: &str, to: &str, port: u16) -> (UdpSocket, SocketAddr) {
    let client = UdpSocket::bind((from, 0)).unwrap();
    client.set_read_timeout(Some(LIMIT)).unwrap();
    let to = SocketAddr::new(to.parse().unwrap(), port);
    client.send_to(b"who?", to).unwrap();
    (client, to)
}

/// Asks from one address at another, and is answered from there.
fn is_answered(from: &str, to: &str, port: u16) {
    let (client, to) = asks(from, to, port);
    let mut buffer = [0; 16];
    let (length, answered) = client.recv_from(&mut buffer).unwrap_or_else(|error| {
        panic!("from {from} to {to}: {error}");
    });
    assert_eq!((&buffer[..length], answered), (&b"who?"[..], to), "from {from}");
}

pub(crate) fn a_guest_hears_the_nodes_port_and_answers_from_it() {
    let zygote = Zygote::start();
    for guest in ["net.wasm", "net3.wasm"] {
        let sandbox = zygote.sandbox();
        sandbox.network("pod", &network(&["10.77.0.1", "fd00:77::1"]));
        let four = everywhere(AddressFamily::INET);
        let port = port_of(&four);
        // Nobody hears it yet, and nobody will.
        let (too_early, _) = asks("127.0.0.1", "127.0.0.1", port);
        four.1.peek_from(&mut [0; 1]).unwrap();
        let server = echoes(&sandbox, guest, "0.0.0.0", vec![four]);
        for _ in 0..2 {
            is_answered("127.0.0.1", "127.0.0.1", port);
            is_answered("10.77.5.5", "10.77.9.9", port);
            is_answered("10.77.5.5", "10.77.0.1", PORT);
        }
        too_early.set_nonblocking(true).unwrap();
        too_early.recv_from(&mut [0; 16]).unwrap_err();
        // The last answer may be there before it is counted.
        wait_until(|| report(&sandbox).sent_bytes == 24);
        let counted = report(&sandbox);
        assert_eq!((counted.received_bytes, counted.sockets), (24, 1));

        let six = everywhere(AddressFamily::INET6);
        let port_of_six = port_of(&six);
        let other = echoes(&sandbox, guest, "::", vec![six]);
        is_answered("::1", "::1", port_of_six);
        is_answered("::1", "fd00:77::1", port_of_six);
        is_answered("127.0.0.1", "127.0.0.1", port);
        for id in [server, other] {
            sandbox.stop(&id, 0);
            sandbox.exit(&id);
        }
        for at in [SocketAddr::from(([0; 4], port)), SocketAddr::from(([0; 16], port_of_six))] {
            UdpSocket::bind(at).expect("it is closed with its container");
        }
    }
}

pub(crate) fn who_comes_by_the_nodes_port_is_let_in_by_the_containers() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let ports = PortRange { protocol: Transport::Udp, first: PORT, last: PORT };
    let peers = vec![AddressRange::one("10.77.5.5".parse().unwrap())];
    let rule = PolicyRule { peers: Some(peers), ports: Some(vec![ports]) };
    // Nor does it let anything out but answers.
    let policy = PodPolicy { ingress: Some(vec![rule]), ..PodPolicy::closed() };
    sandbox.network("pod", &PodNetwork { policy: Some(policy), ..network(&["10.77.0.1"]) });
    let four = everywhere(AddressFamily::INET);
    let port = port_of(&four);
    echoes(&sandbox, "net.wasm", "0.0.0.0", vec![four]);
    is_answered("10.77.5.5", "10.77.9.9", port);
    // The node itself.
    is_answered("127.0.0.1", "127.0.0.1", port);
    let (stranger, _) = asks("10.77.5.6", "10.77.9.9", port);
    wait_until(|| report(&sandbox).refusals.policy == 1);
    is_answered("10.77.5.5", "10.77.9.9", port);
    stranger.set_nonblocking(true).unwrap();
    stranger.recv_from(&mut [0; 16]).unwrap_err();
}

pub(crate) fn a_pod_that_shares_an_address_hears_its_own_port_and_the_nodes() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    sandbox.network("pod", &PodNetwork { is_host: true, ..network(&["10.77.0.1"]) });
    let all = UdpSocket::bind(("0.0.0.0", PORT)).unwrap();
    let server = echoes(&sandbox, "net.wasm", "0.0.0.0", vec![(PORT, all)]);
    for (from, to) in
        [("10.77.5.5", "10.77.0.1"), ("10.77.5.5", "10.77.9.9"), ("127.0.0.1", "127.0.0.1")]
    {
        is_answered(from, to, PORT);
    }
    for taken in ["0.0.0.0", "10.77.0.1", "127.0.0.1"] {
        UdpSocket::bind((taken, PORT)).expect_err("it is the pod's");
    }
    sandbox.stop(&server, 0);
    sandbox.exit(&server);
    UdpSocket::bind(("0.0.0.0", PORT)).expect("it is closed with its container");
    // As a pod of `krustlet run` has it.
    sandbox.network("pod", &PodNetwork { is_host: true, ..network(&["127.0.0.1"]) });
    echoes(&sandbox, "net.wasm", "0.0.0.0", Vec::new());
    is_answered("127.0.0.1", "127.0.0.1", PORT);
}

pub(crate) fn a_pod_of_the_nodes_network_hears_its_port_at_all_addresses() {
    let zygote = Zygote::start();
    let sandbox = zygote.sandbox();
    let shared = PodNetwork { is_host: true, shares_loopback: true, ..network(&["10.77.0.1"]) };
    sandbox.network("pod", &shared);
    for guest in ["net.wasm", "net3.wasm"] {
        let datagrams = || {
            [AddressFamily::INET, AddressFamily::INET6]
                .map(|family| (PORT, everywhere_at(family, PORT)))
                .into()
        };
        let server = echoes(&sandbox, guest, "0.0.0.0", datagrams());
        for (from, to) in
            [("10.77.5.5", "10.77.0.1"), ("10.77.5.5", "10.77.9.9"), ("127.0.0.1", "127.0.0.1")]
        {
            is_answered(from, to, PORT);
        }
        // To all, which nobody answers from.
        let client = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        client.set_broadcast(true).unwrap();
        client.send_to(b"who?", ("127.255.255.255", PORT)).unwrap();
        let (_, answered) = client.recv_from(&mut [0; 16]).unwrap();
        assert_eq!(answered, SocketAddr::from(([127, 0, 0, 1], PORT)));
        sandbox.stop(&server, 0);
        sandbox.exit(&server);
        let server = echoes(&sandbox, guest, "::", datagrams());
        for to in ["fd00:77::1", "::1"] {
            is_answered("::1", to, PORT);
        }
        sandbox.stop(&server, 0);
        sandbox.exit(&server);
        // One address alone.
        let server = echoes(&sandbox, guest, "127.0.0.1", datagrams());
        is_answered("127.0.0.1", "127.0.0.1", PORT);
        sandbox.stop(&server, 0);
        sandbox.exit(&server);
    }
}
