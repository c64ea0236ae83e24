//! The pods' network in a real kernel: each test has a network namespace of its
//! own for the node, so that nothing of it is seen outside. They need root.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "kernel/by_node.rs"]
mod by_node;
#[path = "kernel/kept_out.rs"]
mod kept_out;

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use krustlet_model::PodUid;
use krustlet_network::{
    Mode, NameServers, Namespace, Network, NetworkConfig, NetworkState, NetworkTask, NodeRanges,
    Peer, Peers, PodRanges, open, outgoing_address, plan::link_name, prepare,
};
use rustix::{
    mount::MountPropagationFlags,
    thread::{UnshareFlags, unshare_unsafe},
};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

/// A test that hangs must fail here, by name, not in the runner's limit.
const LIMIT: Duration = Duration::from_secs(20);

/// Runs a test on a thread with network and mounts of its own. All threads that
/// it starts, those of its runtime included, are born there.
fn in_a_room(test: impl AsyncFnOnce() + Send + 'static) {
    assert!(
        rustix::process::geteuid().is_root(),
        "these tests make network namespaces: run as root"
    );
    let run = move || {
        // SAFETY: the thread ends with the test, and no memory is unshared.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }.unwrap();
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        ip(&["link", "set", "lo", "up"]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    };
    thread::spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().expect("iproute2 is there");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments:?}: {error}");
    text
}

/// The directory of an agent. What is mounted there goes with it.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let detach = rustix::mount::UnmountFlags::DETACH;
        let _ = rustix::mount::unmount(namespace(self.path()), detach);
    }
}

/// How a node's network is set up, beside its ranges.
struct Setup {
    mode: Mode,
    configured: Option<PodRanges>,
    peers: Option<Peers>,
    living: Option<File>,
    by_node: bool,
    name_servers: NameServers,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            mode: Mode::Own,
            configured: None,
            peers: None,
            living: None,
            by_node: false,
            name_servers: NameServers::default(),
        }
    }
}

/// A node's network that is kept.
struct Node {
    home: Home,
    network: Network,
    ranges: watch::Sender<NodeRanges>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Node {
    async fn start(ranges: &[&str]) -> Self {
        let home = Home::new();
        Self::resume(home, ranges).await
    }

    async fn resume(home: Home, ranges: &[&str]) -> Self {
        Self::set_up(home, ranges, Setup::default()).await
    }

    async fn among(home: Home, ranges: &[&str], peers: Peers) -> Self {
        Self::set_up(home, ranges, Setup { peers: Some(peers), ..Setup::default() }).await
    }

    async fn set_up(home: Home, ranges: &[&str], setup: Setup) -> Self {
        let node = Self::unsettled(home, ranges, setup);
        node.network.restored();
        node.wait_for(|state| matches!(state, NetworkState::Own(_))).await;
        node
    }

    /// One that has yet to be in order, and to hear which pods go on.
    fn unsettled(home: Home, ranges: &[&str], setup: Setup) -> Self {
        let texts = ranges.iter().map(ToString::to_string).collect();
        let (ranges, told) = watch::channel(NodeRanges::Some(texts));
        let (network, task) = opened(home.path(), told, setup);
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(task.run(stop.clone()));
        Self { home, network, ranges, stop, tasks }
    }

    async fn wait_for(&self, is_so: impl FnMut(&NetworkState) -> bool) {
        let mut state = self.network.state();
        timeout(LIMIT, state.wait_for(is_so)).await.expect("in time").unwrap();
    }

    /// The agent ends; what leads to the pods stays.
    async fn leave(mut self) -> Home {
        self.stop.cancel();
        timeout(LIMIT, self.tasks.join_next()).await.unwrap().unwrap().unwrap();
        self.home
    }

    fn link(&self) -> String {
        link_name(self.home.path()).unwrap()
    }

    fn pod(&self, name: &str, port: u16) -> Vec<SocketAddr> {
        let addresses = self.network.allocate(&PodUid::new(name)).unwrap();
        let mut listening = Vec::new();
        for address in addresses {
            let address = SocketAddr::new(address, port);
            let bound = entered(self.home.path()).within(|| TcpListener::bind(address));
            let listener = bound.unwrap();
            let name = name.to_owned();
            thread::spawn(move || answer(&listener, &name));
            listening.push(address);
        }
        listening
    }
}

fn namespace(home: &Path) -> PathBuf {
    home.join("netns")
}

/// The pods' namespace of a node, which is there.
fn entered(home: &Path) -> Namespace {
    let prepared = prepare(Mode::Own, namespace(home), || None).unwrap();
    prepared.namespace().unwrap().clone()
}

fn lose(home: &Path) {
    rustix::mount::unmount(namespace(home), rustix::mount::UnmountFlags::DETACH).unwrap();
}

fn opened(
    home: &Path,
    ranges: watch::Receiver<NodeRanges>,
    Setup { mode, configured, peers, living, by_node, name_servers }: Setup,
) -> (Network, NetworkTask) {
    let prepared = prepare(mode, namespace(home), || living).unwrap();
    let config = NetworkConfig {
        root: home.to_owned(),
        state: home.to_owned(),
        node: vec!["192.0.2.1".parse().unwrap()],
        api_port: Some(10250),
        configured,
        ranges,
        peers,
        by_node,
        name_servers,
    };
    open(config, prepared).unwrap()
}

/// Tells each caller who is here and where they come from, until the test ends.
fn answer(listener: &TcpListener, name: &str) {
    while let Ok((mut stream, peer)) = listener.accept() {
        let _ = write!(stream, "{name} {}", peer.ip());
    }
}

/// What is said at an address.
fn call(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Calls until it is answered like this.
async fn eventually(address: SocketAddr, expected: &str) {
    let end = Instant::now() + LIMIT;
    loop {
        let said = call(address);
        if said.as_deref().is_ok_and(|said| said == expected) {
            return;
        }
        assert!(Instant::now() < end, "{address}: {said:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn pods_of_both_families_listen_on_one_port_each_at_its_address() {
    in_a_room(async || {
        let node = Node::start(&["10.244.1.0/24", "fd00:1::/64"]).await;
        let one = node.pod("one", 80);
        let two = node.pod("two", 80);
        assert_eq!(one[0].to_string(), "10.244.1.2:80");
        assert_eq!(two[1].to_string(), "[fd00:1::3]:80");
        for (pod, name) in [(&one, "one"), (&two, "two")] {
            // The node's first address of the range is its own.
            assert_eq!(call(pod[0]).unwrap(), format!("{name} 10.244.1.1"));
            assert_eq!(call(pod[1]).unwrap(), format!("{name} fd00:1::1"));
        }
        // Nobody listens there, and the kernel says so at once.
        let refused = call("10.244.1.9:80".parse().unwrap()).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        // No neighbour was asked for: there is but the one entry for all.
        let asked = ip(&["-4", "neigh", "show", "dev", &node.link()]);
        assert_eq!(asked.lines().count(), 1, "{asked}");
        assert!(asked.contains("PERMANENT"), "{asked}");
    });
}

#[test]
fn pods_reach_each_other_and_the_node_by_their_own_addresses() {
    in_a_room(async || {
        let node = Node::start(&["10.244.1.0/24", "fd00:1::/64"]).await;
        let server = node.pod("server", 8080);
        let client = node.network.allocate(&PodUid::new("client")).unwrap();
        let inside = entered(node.home.path());
        for (index, at_node) in ["10.244.1.1:7000", "[fd00:1::1]:7000"].into_iter().enumerate() {
            let at_node: SocketAddr = at_node.parse().unwrap();
            let listener = TcpListener::bind(at_node).unwrap();
            thread::spawn(move || answer(&listener, "node"));
            let from = client[index];
            for (to, who) in [(server[index], "server"), (at_node, "node")] {
                let said = inside.within(|| call_from(from, to)).unwrap();
                assert_eq!(said, format!("{who} {from}"));
            }
        }
    });
}

#[test]
fn a_node_may_have_a_range_of_ipv6_alone() {
    in_a_room(async || {
        let forwarding = "/proc/sys/net/ipv4/ip_forward";
        fs::write(forwarding, "0").unwrap();
        let node = Node::start(&["fd00:1::/64"]).await;
        let server = node.pod("server", 80);
        let [server] = server[..] else { panic!("{server:?}") };
        assert_eq!(server.to_string(), "[fd00:1::2]:80");
        assert_eq!(call(server).unwrap(), "server fd00:1::1");
        let from = node.network.allocate(&PodUid::new("client")).unwrap()[0];
        let said = entered(node.home.path()).within(|| call_from(from, server)).unwrap();
        assert_eq!(said, "server fd00:1::3");
        // Of the other family there is nothing.
        assert_eq!(ip(&["-4", "address", "show", "dev", &node.link()]), "");
        assert_eq!(fs::read_to_string(forwarding).unwrap().trim(), "0");
    });
}

/// A connection from an address of the pods'.
fn connect_from(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    use std::os::fd::{FromRawFd, IntoRawFd};

    use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
    let family = if from.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let made = socket(family, SocketType::STREAM, None)?;
    bind(&made, &SocketAddr::new(from, 0))?;
    connect(&made, &to)?;
    // SAFETY: it was ours alone.
    Ok(unsafe { TcpStream::from_raw_fd(made.into_raw_fd()) })
}

/// As [`call`], from an address of the pods'.
fn call_from(from: IpAddr, to: SocketAddr) -> io::Result<String> {
    let mut text = String::new();
    connect_from(from, to)?.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn a_new_agent_finds_all_as_it_was() {
    in_a_room(async || {
        let node = Node::start(&["10.244.1.0/24"]).await;
        let pod = node.pod("one", 80)[0];
        let links = ip(&["link", "show", &node.link()]);
        node.network.release(&PodUid::new("gone"));
        let other = PodUid::new("two");
        let let_go = node.network.allocate(&other).unwrap();
        node.network.release(&other);
        let home = node.leave().await;
        // While no agent lives, pods are reached.
        assert_eq!(call(pod).unwrap(), "one 10.244.1.1");

        let node = Node::resume(home, &["10.244.1.0/24"]).await;
        node.network.restore(&PodUid::new("one"), &[pod.ip()]).unwrap();
        assert_eq!(ip(&["link", "show", &node.link()]), links);
        assert_eq!(call(pod).unwrap(), "one 10.244.1.1");
        // Turns begin anew, but neither of the two is given.
        let next = node.network.allocate(&PodUid::new("three")).unwrap();
        assert!(next[0] != pod.ip() && next != let_go, "{next:?}");
        assert_eq!(next[0].to_string(), "10.244.1.4");
    });
}

/// What leads to and from the pods as the kernel has it, on this side of the link.
fn leads() -> Vec<String> {
    let shown = [
        ip(&["-4", "route", "show", "table", "all"]),
        ip(&["-6", "route", "show", "table", "all"]),
        ip(&["neigh", "show", "nud", "permanent"]),
    ];
    let ours = ["10.244.1.", "fd00:1::", "default via", "169.254.1.", "fe80::1 ", "fe80::2 "];
    let is_ours = |line: &&str| ours.iter().any(|part| line.contains(part));
    let lines = shown.iter().flat_map(|text| text.lines()).filter(is_ours);
    let mut lines: Vec<_> = lines.map(|line| line.trim().to_owned()).collect();
    lines.sort();
    lines
}

#[test]
fn what_is_removed_comes_back() {
    in_a_room(async || {
        let node = Node::start(&["10.244.1.0/24", "fd00:1::/64"]).await;
        let pod = node.pod("one", 80);
        let link = node.link();
        let inside = entered(node.home.path());
        let both = || (leads(), inside.within(|| Ok(leads())).unwrap());
        let whole = both();
        assert!(whole.0.len() >= 6 && whole.1.len() >= 8, "{whole:#?}");
        // Longer than it takes to hear of it, and not as long as until it is looked at unasked.
        let back = async |what: &str| {
            let end = Instant::now() + LIMIT;
            while both() != whole {
                assert!(Instant::now() < end, "{what}: {:#?} is not {whole:#?}", both());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            eventually(pod[0], "one 10.244.1.1").await;
            eventually(pod[1], "one fd00:1::1").await;
        };
        let removals = [
            vec![format!("link del {link}")],
            vec![format!("link set {link} down")],
            vec!["route del 10.244.1.0/24".into(), "-6 route del fd00:1::/64".into()],
            vec![
                format!("address del 10.244.1.1/32 dev {link}"),
                format!("-6 address del fd00:1::1/128 dev {link}"),
            ],
            vec![
                format!("neigh del 169.254.1.2 dev {link}"),
                format!("-6 neigh del fe80::2 dev {link}"),
            ],
        ];
        for removals in removals {
            for removal in &removals {
                ip(&removal.split(' ').collect::<Vec<_>>());
            }
            back(&removals.join(", ")).await;
        }
        for removals in [
            &["link set lo down"][..],
            &["link set eth0 down"],
            &["link del eth0"],
            &[
                "route del default",
                "-6 route del default",
                "route del local 10.244.1.0/24 dev lo table local",
                "-6 route del local fd00:1::/64 dev lo table local",
                "route del 10.244.1.1/32 table local",
                "-6 route del fd00:1::1/128 table local",
            ],
            &["neigh del 169.254.1.1 dev eth0", "-6 neigh del fe80::1 dev eth0"],
        ] {
            for removal in removals {
                let words: Vec<_> = removal.split(' ').collect();
                inside.within(|| Ok(ip(&words))).unwrap();
            }
            back(&removals.join(", ")).await;
        }
        for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            let path = Path::new("/proc/sys").join(setting);
            fs::write(&path, "0").unwrap();
            let end = Instant::now() + LIMIT;
            while fs::read_to_string(&path).unwrap().trim() != "1" {
                assert!(Instant::now() < end, "{setting} stays off");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        // So does the file by which zygotes get there.
        lose(node.home.path());
        ip(&["link", "del", &link]);
        eventually(pod[0], "one 10.244.1.1").await;
        entered(node.home.path()).within(|| TcpListener::bind("10.244.1.7:80").map(drop)).unwrap();
    });
}

#[test]
fn a_file_without_a_namespace_is_put_to_use() {
    in_a_room(async || {
        // What a machine that was started anew finds.
        let home = Home::new();
        fs::write(namespace(home.path()), "").unwrap();
        let node = Node::resume(home, &["10.244.1.0/24"]).await;
        let pod = node.pod("one", 80)[0];
        assert_eq!(call(pod).unwrap(), "one 10.244.1.1");
    });
}

#[test]
fn two_nodes_of_one_machine_reach_each_others_pods() {
    in_a_room(async || {
        let first = Node::start(&["10.244.1.0/24", "fd00:1::/64"]).await;
        let second = Node::start(&["10.244.2.0/24", "fd00:2::/64"]).await;
        assert_ne!(first.link(), second.link());
        let server = second.pod("server", 80);
        let client = first.network.allocate(&PodUid::new("client")).unwrap();
        let inside = entered(first.home.path());
        for (from, to) in client.into_iter().zip(server) {
            let said = inside.within(|| call_from(from, to)).unwrap();
            assert_eq!(said, format!("server {from}"));
        }
    });
}

#[test]
fn a_range_that_is_taken_away_is_led_to_until_its_last_pod_is_gone() {
    in_a_room(async || {
        let node = Node::start(&["10.244.1.0/24"]).await;
        let old = node.pod("old", 80)[0];
        let next = PodRanges::parse(&["10.244.9.0/24"]).unwrap();
        node.ranges.send_replace(NodeRanges::Some(vec![next.to_string()]));
        node.wait_for(|state| *state == NetworkState::Own(next.clone())).await;
        let new = node.pod("new", 80)[0];
        assert_eq!(new.to_string(), "10.244.9.2:80");
        assert_eq!(call(new).unwrap(), "new 10.244.9.1");
        assert!(call(old).unwrap().starts_with("old "));

        node.network.release(&PodUid::new("old"));
        until_routes(&["route"], |routes| !routes.contains("10.244.1.0/24")).await;
        assert_eq!(call(new).unwrap(), "new 10.244.9.1");
    });
}

async fn until_routes(show: &[&str], is_so: impl Fn(&str) -> bool) {
    let end = Instant::now() + LIMIT;
    while !is_so(&ip(show)) {
        assert!(Instant::now() < end, "{}", ip(show));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Where somebody answers on the node that is led to.
const THERE: [&str; 2] = ["10.244.2.7:80", "[fd00:2::7]:80"];

#[test]
fn pods_of_a_node_on_the_same_network_are_led_to() {
    in_a_room(async || {
        // Another machine: a namespace with a link to this one, and a range.
        let home = Home::new();
        let other = Namespace::open(namespace(home.path()), || None).unwrap();
        let file = namespace(home.path());
        let file = file.to_str().unwrap();
        ip(&["link", "add", "here", "type", "veth", "peer", "name", "there", "netns", file]);
        ip(&["address", "add", "192.0.2.1/24", "dev", "here"]);
        ip(&["address", "add", "2001:db8:2::1/64", "dev", "here", "nodad"]);
        ip(&["link", "set", "here", "up"]);
        let listeners = other
            .within(|| {
                ip(&["link", "set", "lo", "up"]);
                ip(&["address", "add", "192.0.2.2/24", "dev", "there"]);
                ip(&["address", "add", "2001:db8:2::2/64", "dev", "there", "nodad"]);
                ip(&["link", "set", "there", "up"]);
                ip(&["route", "add", "10.244.1.0/24", "via", "192.0.2.1"]);
                ip(&["route", "add", "fd00:1::/64", "via", "2001:db8:2::1"]);
                ip(&["route", "add", "local", "10.244.2.0/24", "dev", "lo"]);
                ip(&["address", "add", "fd00:2::7/128", "dev", "lo", "nodad"]);
                THERE.iter().map(TcpListener::bind).collect::<io::Result<Vec<_>>>()
            })
            .unwrap();
        for listener in listeners {
            thread::spawn(move || answer(&listener, "there"));
        }

        let peer = |name: &str, address: &str, range: &str| Peer {
            name: name.into(),
            addresses: vec![address.parse().unwrap()],
            ranges: vec![range.into()],
        };
        let both = |name: &str, addresses: [&str; 2], ranges: [&str; 2]| Peer {
            name: name.into(),
            addresses: addresses.map(|address| address.parse().unwrap()).into(),
            ranges: ranges.map(str::to_owned).into(),
        };
        let all = vec![
            both("self", ["192.0.2.1", "2001:db8:2::1"], ["10.244.1.0/24", "fd00:1::/64"]),
            both("there", ["192.0.2.2", "2001:db8:2::2"], ["10.244.2.0/24", "fd00:2::/64"]),
            // On no network of this one.
            both("apart", ["198.51.100.2", "2001:db8:9::2"], ["10.244.3.0/24", "fd00:3::/64"]),
            // Somebody else leads there.
            peer("taken", "192.0.2.3", "10.244.0.0/24"),
            // With a metric, as routing daemons have it.
            both("daemon", ["192.0.2.5", "2001:db8:2::5"], ["10.244.5.0/24", "fd00:5::/64"]),
            // What it has would lead away from all of them.
            peer("greedy", "192.0.2.4", "192.0.0.0/16"),
        ];
        ip(&["route", "add", "10.244.0.0/24", "via", "192.0.2.9"]);
        let daemon = ["10.244.5.0/24", "via", "192.0.2.9", "proto", "bird", "metric", "32"];
        let daemon6 = ["fd00:5::/64", "via", "2001:db8:2::9", "proto", "bird", "metric", "2048"];
        ip(&[&["route", "add"][..], &daemon[..]].concat());
        ip(&[&["-6", "route", "add"][..], &daemon6[..]].concat());
        let (peers, known) = watch::channel(None);
        let told = Peers { own: "self".into(), known };
        let ranges = ["10.244.1.0/24", "fd00:1::/64"];
        let node = Node::among(Home::new(), &ranges, told).await;
        peers.send_replace(Some(Arc::new(all.clone())));
        let show = ["route", "show", "proto", "107"];
        let show6 = ["-6", "route", "show", "proto", "107"];
        until_routes(&show, |routes| routes.starts_with("10.244.2.0/24 via 192.0.2.2")).await;
        until_routes(&show6, |routes| routes.starts_with("fd00:2::/64 via 2001:db8:2::2")).await;
        assert_eq!((ip(&show).lines().count(), ip(&show6).lines().count()), (1, 1));

        let pod = node.network.allocate(&PodUid::new("one")).unwrap();
        let inside = entered(node.home.path());
        for (from, to) in pod.into_iter().zip(THERE) {
            let to = to.parse().unwrap();
            let said = inside.within(|| call_from(from, to)).unwrap();
            assert_eq!(said, format!("there {from}"));
        }

        // Once the other's route is gone, ours may be there.
        ip(&["route", "del", "10.244.0.0/24"]);
        until_routes(&show, |routes| routes.contains("10.244.0.0/24 via 192.0.2.3")).await;
        ip(&[&["route", "del"][..], &daemon[..]].concat());
        ip(&[&["-6", "route", "del"][..], &daemon6[..]].concat());
        until_routes(&show, |routes| routes.contains("10.244.5.0/24 via 192.0.2.5")).await;
        until_routes(&show6, |routes| routes.contains("fd00:5::/64 via 2001:db8:2::5")).await;
        // And goes when the other is back.
        ip(&[&["route", "add"][..], &daemon[..]].concat());
        until_routes(&show, |routes| !routes.contains("10.244.5.0/24")).await;

        // Put back, and gone with the node.
        ip(&["route", "del", "10.244.2.0/24"]);
        ip(&["-6", "route", "del", "fd00:2::/64"]);
        until_routes(&show, |routes| routes.contains("10.244.2.0/24")).await;
        until_routes(&show6, |routes| routes.contains("fd00:2::/64")).await;
        peers.send_replace(Some(Arc::new(all[..1].to_vec())));
        until_routes(&show, str::is_empty).await;
        until_routes(&show6, str::is_empty).await;
    });
}

/// Nodes of a cluster: this one, and another whose pods are of `range`.
fn cluster(range: &str, hop: &str) -> Peers {
    let peer = |name: &str, address: &str, range: &str| Peer {
        name: name.into(),
        addresses: vec![address.parse().unwrap()],
        ranges: vec![range.into()],
    };
    let all = vec![peer("self", "192.0.2.1", "10.244.1.0/24"), peer("other", hop, range)];
    let known = watch::channel(Some(Arc::new(all))).1;
    Peers { own: "self".into(), known }
}

#[test]
fn routes_of_another_agent_stay_and_those_of_an_agent_before_go_when_they_are_not_asked_for() {
    in_a_room(async || {
        ip(&["link", "add", "here", "type", "veth", "peer", "name", "there"]);
        ip(&["address", "add", "192.0.2.1/24", "dev", "here"]);
        ip(&["link", "set", "here", "up"]);
        // Two agents of two clusters on one machine.
        let first = cluster("10.1.0.0/24", "192.0.2.2");
        let first = Node::among(Home::new(), &["10.244.1.0/24"], first).await;
        let show = ["route", "show", "proto", "107"];
        until_routes(&show, |routes| routes.contains("10.1.0.0/24 via 192.0.2.2")).await;
        let second = cluster("10.2.0.0/24", "192.0.2.3");
        let second = Node::among(Home::new(), &["10.244.2.0/24"], second).await;
        until_routes(&show, |routes| routes.contains("10.2.0.0/24 via 192.0.2.3")).await;
        assert!(ip(&show).contains("10.1.0.0/24"), "{}", ip(&show));
        // Each puts back its own at the next look; neither minds the other's.
        for range in ["10.1.0.0/24", "10.2.0.0/24"] {
            ip(&["route", "del", range]);
            until_routes(&show, |routes| routes.contains(range)).await;
        }
        assert_eq!(ip(&show).lines().count(), 2, "{}", ip(&show));

        // One that is not to lead to other nodes removes what the one before it made.
        let home = first.leave().await;
        assert_eq!(ip(&show).lines().count(), 2, "{}", ip(&show));
        let first = Node::resume(home, &["10.244.1.0/24"]).await;
        until_routes(&show, |routes| !routes.contains("10.1.0.0/24")).await;
        assert!(ip(&show).contains("10.2.0.0/24"), "{}", ip(&show));
        drop((first, second));
    });
}

#[test]
fn a_node_without_a_range_shares_its_address_until_its_pods_had_their_own() {
    in_a_room(async || {
        let home = Home::new();
        let (ranges, told) = watch::channel(NodeRanges::Unknown);
        let (network, task) =
            opened(home.path(), told, Setup { mode: Mode::Auto, ..Setup::default() });
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(task.run(stop.clone()));
        let mut state = network.state();
        assert!(matches!(*state.borrow_and_update(), NetworkState::Waiting(_)));
        ranges.send_replace(NodeRanges::None);
        let shared = |state: &NetworkState| matches!(state, NetworkState::Host { why: Some(_) });
        timeout(LIMIT, state.wait_for(shared)).await.unwrap().unwrap();
        ranges.send_replace(NodeRanges::Some(vec!["10.244.1.0/24".into()]));
        let own = |state: &NetworkState| matches!(state, NetworkState::Own(_));
        timeout(LIMIT, state.wait_for(own)).await.unwrap().unwrap();
        ranges.send_replace(NodeRanges::None);
        let told = |state: &NetworkState| {
            assert!(!shared(state), "{state:?}");
            matches!(state, NetworkState::Waiting(why) if why.contains("--pod-network=host"))
        };
        timeout(LIMIT, state.wait_for(told)).await.unwrap().unwrap();
    });
}

#[test]
fn a_node_without_a_range_gives_addresses_of_its_configurations() {
    in_a_room(async || {
        let home = Home::new();
        let (_ranges, told) = watch::channel(NodeRanges::None);
        let configured = PodRanges::parse(&["10.245.0.0/24"]).unwrap();
        let setup = Setup { configured: Some(configured.clone()), ..Setup::default() };
        let (network, task) = opened(home.path(), told, setup);
        network.restored();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(task.run(stop.clone()));
        let own = |state: &NetworkState| matches!(state, NetworkState::Own(_));
        timeout(LIMIT, network.state().wait_for(own)).await.unwrap().unwrap();
        let addresses = network.allocate(&PodUid::new("one")).unwrap();
        assert!(addresses.len() == 1 && configured.contains(addresses[0]), "{addresses:?}");
    });
}

#[test]
fn an_agent_that_can_no_longer_give_pods_addresses_gives_none_the_nodes() {
    in_a_room(async || {
        let ranges = ["10.244.1.0/24"];
        let of_mode = |mode| Setup { mode, ..Setup::default() };
        let fresh = Home::new();
        fs::create_dir(namespace(fresh.path())).unwrap();
        let node = Node::unsettled(fresh, &ranges, of_mode(Mode::Auto));
        node.wait_for(|state| matches!(state, NetworkState::Host { why: Some(_) })).await;

        let home = Node::start(&ranges).await.leave().await;
        obstruct(home.path());
        let node = Node::unsettled(home, &ranges, of_mode(Mode::Auto));
        node.wait_for(|state| {
            assert!(!matches!(state, NetworkState::Host { .. }), "{state:?}");
            matches!(state, NetworkState::Waiting(why) if why.contains("--pod-network=host"))
        })
        .await;
        let home = node.leave().await;
        let node = Node::unsettled(home, &ranges, of_mode(Mode::Host));
        node.wait_for(|state| matches!(state, NetworkState::Host { why: None })).await;
    });
}

/// A process in a node's namespace of pods, as a sandbox is.
struct Sandbox(Child);

impl Sandbox {
    fn start(inside: &Namespace) -> Self {
        Self(inside.within(|| Command::new("sleep").arg("600").spawn()).unwrap())
    }

    fn namespace(&self) -> File {
        File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_namespace_that_is_not_kept_any_more_is_found_where_pods_live() {
    in_a_room(async || {
        let ranges = ["10.244.1.0/24"];
        let node = Node::start(&ranges).await;
        let pod = node.pod("one", 80)[0];
        let sandbox = Sandbox::start(&entered(node.home.path()));
        let home = node.leave().await;
        // As the mounts of a service are when it is started anew.
        lose(home.path());
        let living = Some(sandbox.namespace());
        let node = Node::unsettled(home, &ranges, Setup { living, ..Setup::default() });
        node.wait_for(|state| matches!(state, NetworkState::Own(_))).await;
        assert_eq!(call(pod).unwrap(), "one 10.244.1.1");
        node.network.restore(&PodUid::new("one"), &[pod.ip()]).unwrap();
        node.network.restored();
        let new = node.pod("two", 80)[0];
        assert_eq!(call(new).unwrap(), "two 10.244.1.1");

        // The node's own is not made the pods', whoever shows it.
        let home = node.leave().await;
        lose(home.path());
        let own = File::open("/proc/thread-self/ns/net").unwrap();
        let node = Node::unsettled(home, &ranges, Setup { living: Some(own), ..Setup::default() });
        node.wait_for(|state| matches!(state, NetworkState::Own(_))).await;
        assert!(ip(&["route"]).contains("10.244.1.0/24 via 169.254.1.2"), "{}", ip(&["route"]));
    });
}

#[test]
fn nothing_is_taken_away_before_it_is_known_which_pods_go_on() {
    in_a_room(async || {
        let node = Node::start(&["10.244.1.0/24"]).await;
        let old = node.pod("old", 80)[0];
        let home = node.leave().await;
        // The agent that comes is told of another range first, then of pods.
        let node = Node::unsettled(home, &["10.244.9.0/24"], Setup::default());
        node.wait_for(|state| matches!(state, NetworkState::Own(_))).await;
        assert!(call(old).unwrap().starts_with("old "));
        node.network.restore(&PodUid::new("old"), &[old.ip()]).unwrap();
        node.network.restored();
        let new = node.pod("new", 80)[0];
        assert_eq!(call(new).unwrap(), "new 10.244.9.1");
        assert!(call(old).unwrap().starts_with("old "));
        node.network.release(&PodUid::new("old"));
        until_routes(&["route"], |routes| !routes.contains("10.244.1.0/24")).await;
    });
}

#[test]
fn a_passing_failure_is_waited_for_by_a_node_that_led_to_pods() {
    in_a_room(async || {
        let ranges = ["10.244.1.0/24"];
        let home = Node::start(&ranges).await.leave().await;
        let node = Node::unsettled(home, &ranges, Setup { mode: Mode::Auto, ..Setup::default() });
        // Where the namespace is kept, nothing can be kept for the moment. The
        // task has yet to run.
        let path = namespace(node.home.path());
        obstruct(node.home.path());
        node.wait_for(|state| {
            assert!(!matches!(state, NetworkState::Host { .. }), "{state:?}");
            matches!(state, NetworkState::Waiting(why) if why.contains("cannot keep"))
        })
        .await;
        fs::remove_dir(&path).unwrap();
        // A change that is heard of is another try.
        ip(&["link", "add", "other", "type", "veth", "peer", "name", "end"]);
        node.wait_for(|state| {
            assert!(!matches!(state, NetworkState::Host { .. }), "{state:?}");
            matches!(state, NetworkState::Own(_))
        })
        .await;
    });
}

/// Makes it impossible to keep a node's namespace, for the moment.
fn obstruct(home: &Path) {
    let path = namespace(home);
    // It may be kept again in between.
    lose(home);
    while fs::remove_file(&path).is_err() {
        lose(home);
    }
    fs::create_dir(&path).unwrap();
}

/// Has the kernel tell of a change that is none of ours, which is another try.
async fn prompt() {
    ip(&["link", "add", "other", "type", "veth", "peer", "name", "end"]);
    ip(&["link", "del", "other"]);
    tokio::time::sleep(Duration::from_millis(100)).await;
}

#[test]
fn a_failure_that_lasts_is_told_and_nothing_is_given_of_a_range_that_is_gone() {
    in_a_room(async || {
        let node = Node::start(&["10.244.1.0/24"]).await;
        let old = node.pod("old", 80)[0];
        let state = node.network.state();
        let is_broken = || matches!(&*state.borrow(), NetworkState::Waiting(why) if why.contains("cannot keep"));
        // Of the range that is the Node's, pods get addresses for a few tries.
        obstruct(node.home.path());
        let end = Instant::now() + LIMIT;
        while !is_broken() {
            assert!(Instant::now() < end, "{:?}", *state.borrow());
            prompt().await;
        }
        assert!(call(old).unwrap().starts_with("old "), "who has one keeps it");
        fs::remove_dir(namespace(node.home.path())).unwrap();
        prompt().await;
        node.wait_for(|state| matches!(state, NetworkState::Own(_))).await;

        // Of one that is not, none at all.
        obstruct(node.home.path());
        node.ranges.send_replace(NodeRanges::Some(vec!["10.244.9.0/24".into()]));
        node.wait_for(|state| matches!(state, NetworkState::Waiting(_))).await;
        assert!(is_broken(), "{:?}", *state.borrow());
        fs::remove_dir(namespace(node.home.path())).unwrap();
        prompt().await;
        node.wait_for(|state| matches!(state, NetworkState::Own(_))).await;
        assert_eq!(node.pod("new", 80)[0].to_string(), "10.244.9.2:80");
    });
}

#[test]
fn the_api_is_refused_wherever_the_node_answers() {
    in_a_room(async || {
        let node = Node::start(&["10.244.1.0/24", "fd00:1::/64"]).await;
        let mut changes = node.network.node_reached_at();
        let refused = |address: &str| {
            let address: IpAddr = address.parse().unwrap();
            let rules = node.network.refused(false);
            rules.iter().any(|range| range.address == address && range.port == Some(10250))
        };
        // As soon as pods can be placed: the node's ends of the link, too.
        for address in ["192.0.2.1", "10.244.1.1", "fd00:1::1"] {
            assert!(refused(address), "{address}");
        }
        assert!(!refused("10.244.1.2") && !refused("198.51.100.7"));
        // What another program makes is heard of.
        ip(&["link", "add", "other", "type", "veth", "peer", "name", "end"]);
        ip(&["address", "add", "198.51.100.7/24", "dev", "other"]);
        let heard = async {
            while !refused("198.51.100.7") {
                changes.changed().await.unwrap();
            }
        };
        timeout(LIMIT, heard).await.expect("in time");
    });
}

#[test]
fn packets_of_pods_are_as_long_as_the_way_outwards_takes() {
    in_a_room(async || {
        ip(&["link", "add", "out", "type", "veth", "peer", "name", "far"]);
        ip(&["link", "set", "dev", "out", "up"]);
        ip(&["link", "set", "dev", "far", "up"]);
        ip(&["address", "add", "198.51.100.1/24", "dev", "out"]);
        let node = Node::start(&["10.244.1.0/24"]).await;
        let link = node.link();
        let inside = entered(node.home.path());
        let both = || {
            let inside = inside.within(|| Ok(ip(&["link", "show", "eth0"]))).unwrap();
            [ip(&["link", "show", &link]), inside]
        };
        let until = async |mtu: &str| {
            let end = Instant::now() + LIMIT;
            while !both().iter().all(|shown| shown.contains(&format!(" mtu {mtu} "))) {
                assert!(Instant::now() < end, "not {mtu}: {:#?}", both());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        until("1500").await;
        ip(&["link", "set", "dev", "out", "mtu", "1400"]);
        ip(&["route", "add", "default", "via", "198.51.100.2", "dev", "out"]);
        until("1400").await;
        inside.within(|| Ok(ip(&["link", "set", "eth0", "mtu", "1300"]))).unwrap();
        until("1400").await;
        ip(&["link", "set", "dev", "out", "mtu", "9000"]);
        until("9000").await;
        // So is a pair that is made anew.
        ip(&["link", "del", &link]);
        eventually_there(&link).await;
        until("9000").await;
    });
}

/// Waits until a link is there.
async fn eventually_there(link: &str) {
    let end = Instant::now() + LIMIT;
    while !ip(&["link"]).contains(link) {
        assert!(Instant::now() < end, "{link} is not there");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn a_machine_is_known_by_the_address_of_its_way_outwards() {
    in_a_room(async || {
        outgoing_address(false).unwrap_err();
        ip(&["link", "add", "out", "type", "veth", "peer", "name", "end"]);
        ip(&["link", "set", "end", "up"]);
        ip(&["link", "set", "out", "up"]);
        ip(&["address", "add", "2001:db8:7::7/64", "dev", "out", "nodad"]);
        ip(&["-6", "route", "add", "default", "via", "2001:db8:7::1"]);
        for prefers_ipv6 in [false, true] {
            let found = outgoing_address(prefers_ipv6).unwrap();
            assert_eq!(found.to_string(), "2001:db8:7::7");
        }
        ip(&["address", "add", "198.51.100.7/24", "dev", "out"]);
        ip(&["route", "add", "default", "via", "198.51.100.1"]);
        for (prefers_ipv6, expected) in [(false, "198.51.100.7"), (true, "2001:db8:7::7")] {
            assert_eq!(outgoing_address(prefers_ipv6).unwrap().to_string(), expected);
        }
        // By one that is known on the link alone nobody else gets here.
        ip(&["address", "del", "198.51.100.7/24", "dev", "out"]);
        ip(&["address", "add", "169.254.9.9/16", "dev", "out"]);
        ip(&["route", "replace", "default", "via", "169.254.1.1", "dev", "out"]);
        assert_eq!(outgoing_address(false).unwrap().to_string(), "2001:db8:7::7");
    });
}
