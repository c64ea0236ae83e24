//! What nobody reaches who is among the pods, even with sockets of his own.

use std::net::{SocketAddrV6, UdpSocket};

use super::*;

/// Has somebody listen at an address of the node's, by connections.
fn listen(at: &str) {
    let listener = TcpListener::bind(at).unwrap();
    thread::spawn(move || answer(&listener, "node"));
}

/// What the one who connects is told, from an address of a pod's.
fn told(inside: &Namespace, from: IpAddr, to: &str) -> Result<String, io::ErrorKind> {
    let to: SocketAddr = to.parse().unwrap();
    let said = inside.within(|| call_from(from, to));
    // Who listens at all addresses of both families sees one of IPv4 so.
    said.map(|said| said.replace("::ffff:", "")).map_err(|error| error.kind())
}

const REFUSED: Result<String, io::ErrorKind> = Err(io::ErrorKind::PermissionDenied);

#[test]
fn who_is_among_the_pods_reaches_neither_metadata_nor_the_nodes_api() {
    in_a_room(async || {
        // Packets are dropped that come from where none may be sent: not these.
        for scope in ["all", "default"] {
            fs::write(format!("/proc/sys/net/ipv4/conf/{scope}/rp_filter"), "1").unwrap();
        }
        for address in ["192.0.2.1/32", "2001:db8::1/128", "169.254.169.254/32", "169.254.20.10/32"]
        {
            ip(&["address", "add", address, "dev", "lo"]);
        }
        let home = Home::new();
        let resolv_conf = home.path().join("resolv.conf");
        fs::write(&resolv_conf, "nameserver 169.254.20.10\n").unwrap();
        let name_servers = NameServers { resolv_conf: Some(resolv_conf.clone()), given: vec![] };
        let setup = Setup { name_servers, ..Setup::default() };
        let node = Node::set_up(home, &["10.244.1.0/24", "fd00:1::/64"], setup).await;
        let [four, six] = node.network.allocate(&PodUid::new("pod")).unwrap()[..] else {
            panic!("an address of each family")
        };
        let inside = entered(node.home.path());
        for at in ["0.0.0.0:80", "0.0.0.0:53", "[::]:10250", "[::]:7000"] {
            listen(at);
        }
        for (from, address) in [
            (four, "192.0.2.1"),
            (four, "10.244.1.1"),
            (six, "[2001:db8::1]"),
            (six, "[fd00:1::1]"),
        ] {
            assert_eq!(told(&inside, from, &format!("{address}:10250")), REFUSED, "{address}");
            let other = told(&inside, from, &format!("{address}:7000"));
            assert_eq!(other, Ok(format!("node {from}")), "{address}");
        }
        assert_eq!(told(&inside, four, "169.254.169.254:80"), REFUSED);
        assert_eq!(told(&inside, four, "169.254.20.10:80"), REFUSED);
        assert_eq!(told(&inside, four, "169.254.20.10:53"), Ok(format!("node {four}")));
        let datagram = |from: IpAddr, to: SocketAddr| {
            let send = || UdpSocket::bind(SocketAddr::new(from, 0))?.send_to(b"x", to);
            inside.within(send).map_err(|error| error.kind())
        };
        let metadata = "169.254.169.254:80".parse().unwrap();
        assert_eq!(datagram(four, metadata), Err(io::ErrorKind::PermissionDenied));
        assert_eq!(datagram(four, "169.254.20.10:53".parse().unwrap()), Ok(1));
        // Nor what has an address of the link itself, as the node's end may.
        let shown = inside.within(|| Ok(ip(&["-o", "link", "show", "eth0"]))).unwrap();
        let index = shown.split(':').next().unwrap().parse().unwrap();
        let hop = "fe80::1".parse().unwrap();
        let at_link = SocketAddr::V6(SocketAddrV6::new(hop, 7000, 0, index));
        assert_eq!(datagram(six, at_link), Err(io::ErrorKind::PermissionDenied));

        // Where the node answers later is refused too, and no longer than it does. While
        // the file is written anew that names them, servers are what they were.
        fs::write(&resolv_conf, "").unwrap();
        let refused = || inside.within(|| Ok(ip(&["route", "show", "table", "108"]))).unwrap();
        for (change, is_refused) in [("add", true), ("del", false)] {
            ip(&["address", change, "192.0.2.9/32", "dev", "lo"]);
            let end = Instant::now() + LIMIT;
            while refused().contains("192.0.2.9") != is_refused {
                assert!(Instant::now() < end, "after {change}: {}", refused());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        assert_eq!(told(&inside, four, "169.254.20.10:53"), Ok(format!("node {four}")));
    });
}
