//! Pods of one node that meet at the node, where rules like kube-proxy's lead them.

use std::{io::Write as _, net::UdpSocket, process::Stdio};

use super::*;

const RANGES: [&str; 2] = ["10.244.1.0/24", "fd00:1::/64"];

/// The Service of the pod that comes first, in both families, as kube-proxy leads
/// to it without being told to masquerade: but who calls itself.
const SERVICE: [&str; 2] = ["10.96.0.1:80", "[fd00:96::1]:80"];
const RULES: &str = "
table ip services {
    chain lead {
        type nat hook prerouting priority dstnat
        ip daddr 10.96.0.1 meta l4proto { tcp, udp } th dport 80 dnat to 10.244.1.2:8080
    }
    chain hide {
        type nat hook postrouting priority srcnat
        ct status dnat ip saddr 10.244.1.2 ip daddr 10.244.1.2 masquerade
    }
}
table ip6 services {
    chain lead {
        type nat hook prerouting priority dstnat
        ip6 daddr fd00:96::1 meta l4proto { tcp, udp } th dport 80 dnat to [fd00:1::2]:8080
    }
    chain hide {
        type nat hook postrouting priority srcnat
        ct status dnat ip6 saddr fd00:1::2 ip6 daddr fd00:1::2 masquerade
    }
}
";

fn lead_to_services() {
    let mut nft = Command::new("nft");
    let mut running =
        nft.args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nftables is there");
    running.stdin.take().unwrap().write_all(RULES.as_bytes()).unwrap();
    assert!(running.wait().unwrap().success(), "the rules are taken");
}

impl Node {
    async fn by_node(home: Home, ranges: &[&str], by_node: bool) -> Self {
        Self::set_up(home, ranges, Setup { by_node, ..Setup::default() }).await
    }

    /// Pods that answer each datagram as [`answer`] does each connection.
    fn datagrams(&self, at: &[SocketAddr], name: &str) {
        for at in at {
            let socket = entered(self.home.path()).within(|| UdpSocket::bind(at)).unwrap();
            let name = name.to_owned();
            thread::spawn(move || {
                while let Ok((_, peer)) = socket.recv_from(&mut [0; 64]) {
                    let _ = socket.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer);
                }
            });
        }
    }

    /// The rules of the pods' namespace, of both families.
    fn rules(&self) -> [String; 2] {
        let show = || Ok([ip(&["-4", "rule"]), ip(&["-6", "rule"])]);
        entered(self.home.path()).within(show).unwrap()
    }
}

/// A datagram's answer, as a client of that address has it.
fn ask_from(from: IpAddr, to: SocketAddr) -> io::Result<String> {
    let socket = UdpSocket::bind(SocketAddr::new(from, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.connect(to)?;
    socket.send(b"who is there?")?;
    let mut answer = [0; 64];
    // Of a socket that is connected: from the Service, and from nobody else.
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}

#[test]
fn pods_of_one_node_are_led_to_each_other_and_seen_by_their_own_addresses() {
    in_a_room(async || {
        lead_to_services();
        // Where packets are to come from where answers would go.
        for scope in ["all", "default"] {
            fs::write(format!("/proc/sys/net/ipv4/conf/{scope}/rp_filter"), "1").unwrap();
        }
        let node = Node::by_node(Home::new(), &RANGES, true).await;
        let server = node.pod("server", 8080);
        node.datagrams(&server, "server");
        let client = node.network.allocate(&PodUid::new("client")).unwrap();
        let inside = entered(node.home.path());
        for family in 0..2 {
            let service: SocketAddr = SERVICE[family].parse().unwrap();
            let (server, client) = (server[family], client[family]);
            for to in [service, server] {
                for said in [
                    inside.within(|| call_from(client, to)).unwrap(),
                    inside.within(|| ask_from(client, to)).unwrap(),
                ] {
                    assert_eq!(said, format!("server {client}"), "at {to}");
                }
            }
            // Whoever calls itself is seen as the node: that is kube-proxy's doing.
            let own = server.ip();
            let gateway = ["10.244.1.1", "fd00:1::1"][family];
            let said = inside.within(|| call_from(own, service)).unwrap();
            assert_eq!(said, format!("server {gateway}"));
            assert_eq!(inside.within(|| ask_from(own, service)).unwrap(), said);
            assert_eq!(inside.within(|| call_from(own, server)).unwrap(), format!("server {own}"));
            // Nobody listens there, and the kernel says so.
            let nobody = SocketAddr::new(own, 81);
            let refused = inside.within(|| call_from(client, nobody)).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
            // By IPv6 it says so of datagrams when its link has had an address for a second.
            let end = Instant::now() + LIMIT;
            while inside.within(|| ask_from(client, nobody)).unwrap_err().kind()
                != io::ErrorKind::ConnectionRefused
            {
                assert!(Instant::now() < end, "a datagram to nobody is not refused");
            }
        }
    });
}

#[test]
fn a_next_agent_may_have_pods_meet_elsewhere_and_what_is_open_goes_on() {
    in_a_room(async || {
        let node = Node::by_node(Home::new(), &RANGES, false).await;
        let plain = node.rules();
        let [server, client] = ["10.244.1.2", "10.244.1.3"];
        let way = |node: &Node| {
            let asked = ["route", "get", server, "from", client];
            entered(node.home.path()).within(|| Ok(ip(&asked))).unwrap()
        };
        assert!(way(&node).starts_with("local"), "{}", way(&node));
        let (near, far) = entered(node.home.path())
            .within(|| {
                let at = SocketAddr::new(server.parse().unwrap(), 8080);
                let listener = TcpListener::bind(at)?;
                Ok((connect_from(client.parse().unwrap(), at)?, listener.accept()?.0))
            })
            .unwrap();
        // More than fits a packet of the link, and there and back.
        let text = vec![7; 50_000];
        let goes_on = || {
            for (from, to) in [(&near, &far), (&far, &near)] {
                let (mut from, mut to) = (from, to);
                to.set_read_timeout(Some(LIMIT)).unwrap();
                from.write_all(&text).unwrap();
                let mut heard = vec![0; text.len()];
                to.read_exact(&mut heard).unwrap();
                assert_eq!(heard, text);
            }
        };
        goes_on();

        let node = Node::by_node(node.leave().await, &RANGES, true).await;
        assert!(way(&node).contains("dev eth0"), "{}", way(&node));
        goes_on();
        let by_node = node.rules();
        let node = Node::by_node(node.leave().await, &RANGES, true).await;
        assert_eq!(node.rules(), by_node);

        let node = Node::by_node(node.leave().await, &RANGES, false).await;
        assert_eq!(node.rules(), plain);
        assert!(way(&node).starts_with("local"), "{}", way(&node));
        goes_on();
    });
}

#[test]
fn rules_that_are_removed_come_back_and_those_of_a_range_before_go() {
    in_a_room(async || {
        let node = Node::by_node(Home::new(), &RANGES, true).await;
        let whole = node.rules();
        let inside = entered(node.home.path());
        for removal in [
            "rule del pref 4",
            "-6 rule del pref 4",
            "rule del pref 5",
            "-6 rule del pref 5",
            "rule add pref 0 lookup local",
            "-6 rule add pref 0 lookup local",
        ] {
            let words: Vec<_> = removal.split(' ').collect();
            inside.within(|| Ok(ip(&words))).unwrap();
            let end = Instant::now() + LIMIT;
            while node.rules() != whole {
                assert!(Instant::now() < end, "{removal}: {:#?} is not {whole:#?}", node.rules());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        // What somebody else has there is nobody's business.
        inside
            .within(|| Ok(ip(&["rule", "add", "pref", "70", "to", "192.0.2.1", "lookup", "main"])))
            .unwrap();

        let old = PodUid::new("old");
        node.network.allocate(&old).unwrap();
        node.ranges.send_replace(NodeRanges::Some(vec!["10.244.9.0/24".into()]));
        let has = |range: &str| node.rules().concat().contains(&format!("to {range} iif lo"));
        let until = async |what: &str, is_so: &dyn Fn() -> bool| {
            let end = Instant::now() + LIMIT;
            while !is_so() {
                assert!(Instant::now() < end, "{what}: {:#?}", node.rules());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        until("both ranges have one", &|| has("10.244.9.0/24") && has(RANGES[0]) && has(RANGES[1]))
            .await;
        node.network.release(&old);
        until("the new one alone has one", &|| !has(RANGES[0]) && !has(RANGES[1])).await;
        let rules = node.rules();
        assert!(has("10.244.9.0/24") && rules[0].contains("to 192.0.2.1"), "{rules:#?}");
        assert!(rules[1].starts_with("0:\tfrom all lookup local"), "{rules:#?}");
    });
}

#[test]
fn a_way_to_a_pod_that_the_node_calls_a_better_one_is_not_taken() {
    in_a_room(async || {
        let node = Node::by_node(Home::new(), &["fd00:1::/64"], true).await;
        let server = node.pod("server", 80)[0];
        let client = node.network.allocate(&PodUid::new("client")).unwrap()[0];
        let inside = entered(node.home.path());
        // The next hop is an address of the node's, as it is where one was given to
        // the link: only such a neighbour's word counts.
        let link = node.link();
        ip(&["-6", "address", "flush", "dev", &link, "scope", "link"]);
        ip(&["-6", "address", "add", "fe80::1/64", "dev", &link, "nodad"]);
        // An answer that nobody listens is one that comes from the link's own address.
        let told = || {
            let counted = fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
            let told = counted.lines().find(|line| line.starts_with("Icmp6OutRedirects"));
            told.and_then(|line| line.split_whitespace().nth(1)).is_some_and(|count| count != "0")
        };
        let end = Instant::now() + LIMIT;
        while !told() {
            assert!(Instant::now() < end, "the node tells of no better way");
            let unheard = inside.within(|| ask_from(client, SocketAddr::new(server.ip(), 81)));
            unheard.unwrap_err();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for from in [client, server.ip()] {
            let said = inside.within(|| call_from(from, server)).unwrap();
            assert_eq!(said, format!("server {from}"));
        }
        let refused = inside.within(|| ask_from(client, SocketAddr::new(server.ip(), 81)));
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    });
}
