//! Services on a network: a namespace in which every address of 10.77.0.0/16 is
//! the machine's own.

use std::{
    fs,
    future::poll_fn,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, UdpSocket as Bare},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use krustlet_model::{
    ContainerId,
    policy::{AddressRange, PodPolicy, PolicyRule},
    services::Transport,
};
use krustlet_protocol::{Destinations, Names, PodNetwork, services::COMPLETE};
use rustix::net::SendFlags;
use tokio::time::timeout;

use super::{
    Claim, Family, NetError, Options, Stack, UdpSocket,
    services::tests::{directory, port, write},
};
use crate::{
    log::Log,
    news::{Teller, Wake},
};

/// The address of the Service in all of these tests.
const SERVICE: &str = "10.96.0.7";

/// Longer than anything takes that is not about time.
const LIMIT: Duration = Duration::from_secs(20);

/// Runs a test on a thread with a network of its own.
pub(crate) fn on_a_network(test: impl AsyncFnOnce(&Path, Stack) + Send) {
    let run = || {
        // SAFETY: it is this thread that leaves the process's network, for good.
        let left = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(left, 0, "needs root: {}", std::io::Error::last_os_error());
        for words in ["link set lo up", "route add local 10.77.0.0/16 dev lo"] {
            assert!(Command::new("ip").args(words.split(' ')).status().unwrap().success());
        }
        let home = tempfile::tempdir().unwrap();
        let (directory, _news) = directory(home.path());
        fs::write(home.path().join(COMPLETE), "").unwrap();
        let stack = Stack::default();
        let addresses = vec!["10.77.0.1".parse().unwrap()];
        let network = PodNetwork { addresses, ..PodNetwork::default() };
        stack.set(network, Some(directory));
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(async {
            timeout(LIMIT, test(home.path(), stack)).await.expect("it hangs");
        });
    };
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
}

fn service(port: u16) -> SocketAddr {
    SocketAddr::new(SERVICE.parse().unwrap(), port)
}

fn lead_to(home: &Path, transport: Transport, endpoints: &[SocketAddr]) {
    write(home, SERVICE, port(transport, endpoints));
}

/// Somebody who answers datagrams.
fn answerer(address: &str) -> (Bare, SocketAddr) {
    let socket = Bare::bind((address, 0)).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let at = socket.local_addr().unwrap();
    (socket, at)
}

/// What was sent to the answerer, and his answer as it was heard.
async fn exchange(socket: &UdpSocket, answerer: &Bare) -> (SocketAddr, SocketAddr) {
    let mut buffer = [0; 8];
    let (length, from) = answerer.recv_from(&mut buffer).unwrap();
    answerer.send_to(&buffer[..length], from).unwrap();
    (from, socket.receive(&mut buffer).await.unwrap().1)
}

#[test]
fn a_connection_to_a_service_is_one_to_its_endpoint() {
    on_a_network(async |home, stack| {
        let listener = TcpListener::bind("10.77.0.2:0").unwrap();
        let real = listener.local_addr().unwrap();
        lead_to(home, Transport::Tcp, &[real]);
        let connect = async |to| {
            let permit = stack.permit().unwrap();
            stack.connect_tcp(permit, Options::default(), to).await
        };
        let connection = connect(service(80)).await.unwrap();
        assert_eq!(connection.remote().unwrap(), service(80));
        assert_eq!(connection.local().unwrap().ip().to_string(), "10.77.0.1");
        let (mut other, from) = listener.accept().unwrap();
        assert_eq!(from, connection.local().unwrap());
        other.write_all(b"x").unwrap();
        std::future::poll_fn(|context| connection.poll_readable(context)).await;
        assert_eq!(connection.try_read(&mut [0; 8]).unwrap(), 1);
        connection.try_write(b"y").unwrap();
        assert_eq!(other.read(&mut [0; 8]).unwrap(), 1);

        // Also from a port that the guest chose.
        let bound = stack.bind_tcp("0.0.0.0:7070".parse().unwrap()).unwrap();
        let permit = stack.permit().unwrap();
        let connection = bound.connect(permit, Options::default(), service(80)).await.unwrap();
        assert_eq!(connection.remote().unwrap(), service(80));
        assert_eq!(listener.accept().unwrap().1.to_string(), "10.77.0.1:7070");

        assert_eq!(connect(service(81)).await.unwrap_err(), NetError::ConnectionRefused);
        let direct = connect(real).await.unwrap();
        assert_eq!(direct.remote().unwrap(), real);
        lead_to(home, Transport::Tcp, &[]);
        assert_eq!(connect(service(80)).await.unwrap_err(), NetError::ConnectionRefused);
        fs::write(home.join("addresses").join(SERVICE), "{").unwrap();
        assert_eq!(connect(service(80)).await.unwrap_err(), NetError::RemoteUnreachable);
    });
}

/// A pod that has no address but the loopback's, as standalone.
fn at_home(stack: &Stack) {
    let addresses = vec![Family::V4.localhost()];
    stack.set(PodNetwork { addresses, is_host: true, ..PodNetwork::default() }, None);
}

fn any_port(stack: &Stack) -> UdpSocket {
    let any = "0.0.0.0:0".parse().unwrap();
    stack.bind_udp(stack.permit().unwrap(), Options::default(), any).unwrap()
}

#[test]
fn a_datagram_socket_of_a_pod_at_home_on_the_loopback_hears_only_whom_it_asked() {
    on_a_network(async |_, stack| {
        at_home(&stack);
        let mut socket = any_port(&stack);
        let port = socket.address().port();
        let [(friend, at), (stranger, _), (neighbour, home)] =
            ["10.77.0.2", "10.77.0.3", "127.0.0.1"].map(answerer);
        let unasked = |who: &Bare, ip: &str| who.send_to(b"x", (ip, port)).unwrap();
        for who in [&stranger, &friend] {
            unasked(who, "10.77.0.1");
        }
        poll_fn(|context| socket.poll_receive_ready(context)).await;
        assert_eq!(socket.try_receive(&mut [0; 8]).unwrap_err(), NetError::WouldBlock);
        // By no rule: nobody is told of it.
        assert_eq!(stack.report().refused, 0);
        socket.send(b"asked", Some(at)).await.unwrap();
        unasked(&stranger, "10.77.0.1");
        let (from, heard) = exchange(&socket, &friend).await;
        assert_eq!((from.port(), heard), (port, at));
        assert!(!from.ip().is_loopback());
        // Programs of the machine speak to its loopback as to any other's there.
        unasked(&neighbour, "127.0.0.1");
        assert_eq!(socket.receive(&mut [0; 8]).await.unwrap().1, home);

        socket.connect(Some(at)).unwrap();
        assert_eq!((socket.address().port(), socket.address().ip()), (port, from.ip()));
        unasked(&friend, &from.ip().to_string());
        assert_eq!(socket.receive(&mut [0; 8]).await.unwrap().1, at);
        // Then it is bound where it was.
        socket.connect(None).unwrap();
        assert_eq!(socket.address(), SocketAddr::new(Family::V4.wildcard(), port));
        unasked(&neighbour, "127.0.0.1");
        assert_eq!(socket.receive(&mut [0; 8]).await.unwrap().1, home);
    });
}

#[test]
fn a_port_that_is_called_from_is_listened_at_on_the_loopback_alone() {
    on_a_network(async |_, stack| {
        at_home(&stack);
        let bound = |port| stack.bind_tcp(SocketAddr::new(Family::V4.wildcard(), port)).unwrap();
        let listener = TcpListener::bind("10.77.0.2:0").unwrap();
        let (permit, to) = (stack.permit().unwrap(), listener.local_addr().unwrap());
        let connection = bound(7071).connect(permit, Options::default(), to).await.unwrap();
        let from = listener.accept().unwrap().1;
        assert_eq!(from, connection.local().unwrap());
        assert!(from.port() == 7071 && !from.ip().is_loopback(), "{from}");
        let permit = stack.permit().unwrap();
        let _listener = bound(7072).listen(permit, Options::default(), 8).unwrap();
        assert!(std::net::TcpStream::connect("10.77.0.1:7072").is_err());
        std::net::TcpStream::connect("127.0.0.1:7072").unwrap();
        // So with datagrams.
        let own = "0.0.0.0:7073".parse().unwrap();
        let _bound = stack.bind_udp(stack.permit().unwrap(), Options::default(), own).unwrap();
        Bare::bind("127.0.0.1:7073").unwrap_err();
        Bare::bind("10.77.0.1:7073").unwrap();
    });
}

/// The node's address.
const NODE: &str = "10.77.0.8";

/// Has policies let anybody in, or the node alone.
fn let_in(stack: &Stack, anybody: bool) {
    let ingress = (!anybody).then(Vec::new);
    let node = vec![NODE.parse().unwrap()];
    let policy = Some(PodPolicy { ingress, node, ..PodPolicy::default() });
    let network = PodNetwork { policy, ..(*stack.network()).clone() };
    stack.set(network, stack.services());
}

/// Listens at [`stranger`]'s port.
fn listening(stack: &Stack) -> super::Listener {
    let bound = stack.bind_tcp("0.0.0.0:7070".parse().unwrap()).unwrap();
    bound.listen(stack.permit().unwrap(), Options::default(), 64).unwrap()
}

/// Connects from an address that is not the pod's.
async fn caller(from: &str) -> tokio::net::TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
    socket.connect("10.77.0.1:7070".parse().unwrap()).await.unwrap()
}

async fn stranger() -> tokio::net::TcpStream {
    caller("10.77.0.9").await
}

/// The log of a container of the pod, and its file.
fn log_of(stack: &Stack, home: &Path) -> (Arc<Log>, PathBuf) {
    let file = home.join("log");
    let (teller, _news) = Teller::new(Arc::new(Wake::new().unwrap()));
    let to = fs::File::create(&file).unwrap();
    let id = ContainerId::from_bytes([7; 32]);
    let log = Arc::new(Log::new(id, teller, to, None, u64::MAX).unwrap());
    stack.log_to(&log);
    (log, file)
}

#[test]
fn who_listens_where_only_its_pod_hears_it_is_told_so_once() {
    on_a_network(async |home, stack| {
        let (log, file) = log_of(&stack, home);
        let listens = |address: &str| {
            let bound = stack.bind_tcp(address.parse().unwrap()).unwrap();
            drop(bound.listen(stack.permit().unwrap(), Options::default(), 8).unwrap());
        };
        let hears = |address: &str| {
            let at = address.parse().unwrap();
            drop(stack.bind_udp(stack.permit().unwrap(), Options::default(), at).unwrap());
        };
        for _ in 0..2 {
            listens("[::]:7081");
            hears("[::]:7082");
        }
        // Who is reached, means nobody else, or is a client.
        ["0.0.0.0:7081", "[::1]:7083", "127.0.0.1:7083"].into_iter().for_each(listens);
        ["0.0.0.0:7082", "[::1]:7083", "[::]:0"].into_iter().for_each(hears);
        log.flush().await;
        let text = fs::read_to_string(file).unwrap();
        for port in ["7081", "7082"] {
            let told = format!(
                "krustlet: [::]:{port} is heard within the pod alone, which has no address of \
                 IPv6; listen at 0.0.0.0:{port} to be reached"
            );
            assert_eq!(text.matches(&told).count(), 1, "{text}");
        }
        assert_eq!(text.lines().count(), 2, "{text}");
    });
}

#[test]
fn a_way_that_fails_is_told_to_the_log_once_with_both_ends() {
    on_a_network(async |home, stack| {
        at_home(&stack);
        for words in [
            "link add near type veth peer name far",
            "link set far up",
            "link set near up",
            "address add 192.0.2.2/24 dev near",
        ] {
            assert!(Command::new("ip").args(words.split(' ')).status().unwrap().success());
        }
        let (log, file) = log_of(&stack, home);
        // A port of its own, where it is at home.
        let own = "0.0.0.0:7074".parse().unwrap();
        let socket = stack.bind_udp(stack.permit().unwrap(), Options::default(), own).unwrap();
        for _ in 0..2 {
            let sent = socket.try_send(b"x", Some("192.0.2.1:53".parse().unwrap()));
            assert_eq!(sent, Err(NetError::RemoteUnreachable));
        }
        log.flush().await;
        let text = fs::read_to_string(file).unwrap();
        let told = "krustlet: there is no way from 127.0.0.1 to 192.0.2.1:53: Invalid argument";
        assert_eq!(text.matches(told).count(), 1, "{text}");
    });
}

#[test]
fn peers_that_are_refused_hold_up_no_other_source_of_a_listener() {
    on_a_network(async |_, stack| {
        let_in(&stack, true);
        let mut listener = listening(&stack);
        let mut strangers = Vec::new();
        for _ in 0..40 {
            strangers.push(stranger().await);
        }
        // They wait already when that comes.
        let_in(&stack, false);
        let refused = || stack.report().refused;
        let mut poll = || listener.poll_accept(&mut Context::from_waker(Waker::noop()));
        while refused() == 0 {
            assert!(poll().is_pending());
            tokio::task::yield_now().await;
        }
        let before = refused();
        assert!(before < 40, "not all in one go");
        let to = "127.0.0.1:7070".parse().unwrap();
        let permit = stack.permit().unwrap();
        let own = stack.connect_tcp(permit, Options::default(), to).await.unwrap();
        let Poll::Ready(accepted) = poll() else { panic!("it is the pod's own turn") };
        assert_eq!(accepted.unwrap().remote().unwrap(), own.local().unwrap());
        assert_eq!(refused(), before);
    });
}

#[test]
fn who_is_refused_by_one_endpoint_is_led_to_another() {
    on_a_network(async |home, stack| {
        let listener = TcpListener::bind("10.77.0.2:0").unwrap();
        let real = listener.local_addr().unwrap();
        // Nobody listens there any more.
        let ended: Vec<SocketAddr> =
            (3..8).map(|last| SocketAddr::from(([10, 77, 0, last], real.port()))).collect();
        let connect = async || {
            let permit = stack.permit().unwrap();
            stack.connect_tcp(permit, Options::default(), service(80)).await
        };
        lead_to(home, Transport::Tcp, &[&ended[..2], &[real]].concat());
        for _ in 0..16 {
            let connection = connect().await.unwrap();
            assert_eq!(connection.remote().unwrap(), service(80));
            listener.accept().unwrap();
        }
        lead_to(home, Transport::Tcp, &ended[..1]);
        assert_eq!(connect().await.unwrap_err(), NetError::ConnectionRefused);
        // There is an end to it.
        lead_to(home, Transport::Tcp, &ended);
        assert_eq!(connect().await.unwrap_err(), NetError::ConnectionRefused);
        assert_eq!(stack.report().sockets, 0);
        // Who calls an endpoint itself hears of it.
        let permit = stack.permit().unwrap();
        let direct = stack.connect_tcp(permit, Options::default(), ended[0]).await;
        assert_eq!(direct.unwrap_err(), NetError::ConnectionRefused);
    });
}

#[tokio::test(start_paused = true)]
async fn who_is_dropped_waits_as_long_as_linux_does() {
    let home = tempfile::tempdir().unwrap();
    let (directory, _news) = directory(home.path());
    let mut silent = port(Transport::Tcp, &[]);
    silent.is_silent = true;
    write(home.path(), SERVICE, silent);
    let stack = Stack::default();
    let addresses = vec!["10.77.0.1".parse().unwrap()];
    stack.set(PodNetwork { addresses, ..PodNetwork::default() }, Some(directory));
    let permit = stack.permit().unwrap();
    let begun = tokio::time::Instant::now();
    let connected = stack.connect_tcp(permit, Options::default(), service(80)).await;
    assert_eq!(connected.unwrap_err(), NetError::Timeout);
    assert_eq!(begun.elapsed(), Duration::from_secs(127));
    assert_eq!(stack.report().sockets, 0);
}

#[test]
fn answers_to_datagrams_seem_to_come_from_the_service() {
    on_a_network(async |home, stack| {
        let (one, at_one) = answerer("10.77.0.2");
        let (two, at_two) = answerer("10.77.0.3");
        lead_to(home, Transport::Udp, &[at_one]);
        let socket = stack.udp(Family::V4).await.unwrap();
        let send = |to| socket.try_send(b"x", Some(to));
        send(service(80)).unwrap();
        let (from, heard) = exchange(&socket, &one).await;
        assert_eq!((from.ip().to_string(), heard), ("10.77.0.1".to_owned(), service(80)));

        // To whom it goes on, though there are others, until he is gone.
        lead_to(home, Transport::Udp, &[at_one, at_two]);
        for _ in 0..16 {
            socket.led().flows.age(Duration::from_secs(2));
            send(service(80)).unwrap();
            assert_eq!(exchange(&socket, &one).await.1, service(80));
        }
        lead_to(home, Transport::Udp, &[at_two]);
        socket.led().flows.age(Duration::from_secs(2));
        send(service(80)).unwrap();
        assert_eq!(exchange(&socket, &two).await.1, service(80));

        // Himself he is where he is called himself.
        send(at_two).unwrap();
        assert_eq!(exchange(&socket, &two).await.1, at_two);
        send(service(81)).unwrap();
        lead_to(home, Transport::Udp, &[]);
        send(service(80)).unwrap();
    });
}

#[test]
fn a_connected_socket_stays_at_the_service_wherever_that_leads() {
    on_a_network(async |home, stack| {
        let (one, at_one) = answerer("10.77.0.2");
        let (two, at_two) = answerer("10.77.0.3");
        lead_to(home, Transport::Udp, &[at_one]);
        let mut socket = stack.udp(Family::V4).await.unwrap();
        socket.connect(Some(service(80))).unwrap();
        assert_eq!(socket.remote(), Some(service(80)));
        let local = socket.address();
        socket.try_send(b"x", None).unwrap();
        let (from, heard) = exchange(&socket, &one).await;
        assert_eq!((from, heard), (local, service(80)));
        assert_eq!(socket.try_send(b"x", Some(at_one)), Err(NetError::InvalidArgument));

        lead_to(home, Transport::Udp, &[at_two]);
        socket.led().flows.age(Duration::from_secs(2));
        socket.try_send(b"x", Some(service(80))).unwrap();
        assert_eq!(exchange(&socket, &two).await, (local, service(80)));
        // Who was left is not heard any more.
        one.send_to(b"late", local).unwrap();
        socket.try_send(b"x", None).unwrap();
        assert_eq!(exchange(&socket, &two).await.1, service(80));

        lead_to(home, Transport::Udp, &[]);
        socket.led().flows.age(Duration::from_secs(2));
        assert_eq!(socket.try_send(b"x", None), Err(NetError::ConnectionRefused));
        lead_to(home, Transport::Udp, &[at_one]);
        socket.try_send(b"x", None).unwrap();
        assert_eq!(exchange(&socket, &one).await.1, service(80));

        socket.connect(None).unwrap();
        assert_eq!((socket.remote(), socket.address().port()), (None, local.port()));
        socket.try_send(b"x", Some(at_two)).unwrap();
        assert_eq!(exchange(&socket, &two).await.1, at_two);
    });
}

#[test]
fn who_may_send_nothing_now_is_not_told_that_he_may() {
    on_a_network(async |_, stack| {
        // What is sent to an address whose owner is asked for in vain stays in the
        // socket's buffer until nobody has answered.
        for words in [
            "link add one type veth peer name other",
            "address add 10.88.0.1/24 dev one",
            "link set one up",
            "link set other up",
        ] {
            assert!(Command::new("ip").args(words.split(' ')).status().unwrap().success());
        }
        let to: SocketAddr = "10.88.0.9:9".parse().unwrap();
        let socket = stack.udp(Family::V4).await.unwrap();
        let ready = || std::future::poll_fn(|context| socket.poll_send_ready(context));
        ready().await;
        assert!(socket.can_send());
        let real = socket.socket().unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(real, 4096).unwrap();
        // By itself, so that the runtime hears nothing of it.
        let sends = || rustix::net::sendto(real, &[0; 1000], SendFlags::empty(), &to);
        while sends().is_ok() {}
        assert!(!socket.can_send());
        let noop = &mut Context::from_waker(Waker::noop());
        assert!(socket.poll_send_ready(noop).is_pending());
        ready().await;
        assert!(socket.can_send());
    });
}

#[test]
fn datagrams_leave_an_endpoint_that_a_policy_denies_now() {
    on_a_network(async |home, stack| {
        let (one, at_one) = answerer("10.77.0.2");
        let (two, at_two) = answerer("10.77.0.3");
        lead_to(home, Transport::Udp, &[at_one]);
        let socket = stack.udp(Family::V4).await.unwrap();
        let send = || socket.try_send(b"x", Some(service(80)));
        send().unwrap();
        exchange(&socket, &one).await;

        lead_to(home, Transport::Udp, &[at_one, at_two]);
        let peers = vec![AddressRange::one(at_two.ip())];
        let rule = PolicyRule { peers: Some(peers), ports: None };
        let policy = PodPolicy { egress: Some(vec![rule]), ..PodPolicy::default() };
        let network = PodNetwork { policy: Some(policy), ..(*stack.network()).clone() };
        stack.set(network, stack.services());
        // Any of them is chosen, as by kube-proxy, which knows no policies.
        assert!((0..64).any(|_| send().is_ok()), "it goes on to nobody");
        assert_eq!(exchange(&socket, &two).await.1, service(80));
        for _ in 0..64 {
            send().unwrap();
            assert_eq!(exchange(&socket, &two).await.1, service(80));
        }
    });
}

/// Answers one question over each transport at an address: the datagram with
/// the word that it does not fit, the stream with an address.
fn name_server(address: &str) -> std::thread::JoinHandle<()> {
    /// Response, recursion available; and cut short.
    const FLAGS: [u8; 2] = [0x81, 0x80];
    const CUT: u8 = 0x02;
    /// The name of the question, A, IN, 60 seconds, four bytes, the address.
    const RECORD: [u8; 16] = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7];
    let datagrams = Bare::bind(address).unwrap();
    datagrams.set_read_timeout(Some(LIMIT)).unwrap();
    let streams = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        let (length, from) = datagrams.recv_from(&mut buffer).unwrap();
        buffer[2..4].copy_from_slice(&[FLAGS[0] | CUT, FLAGS[1]]);
        datagrams.send_to(&buffer[..length], from).unwrap();
        let (mut stream, _) = streams.accept().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut message = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut message).unwrap();
        message[2..4].copy_from_slice(&FLAGS);
        // One answer.
        message[6..8].copy_from_slice(&[0, 1]);
        message.extend(RECORD);
        stream.write_all(&u16::try_from(message.len()).unwrap().to_be_bytes()).unwrap();
        stream.write_all(&message).unwrap();
    })
}

#[test]
fn look_ups_go_to_the_nodes_servers_where_guests_may_not() {
    const SERVER: &str = "169.254.20.10:53";
    on_a_network(async |_, stack| {
        let local = ["route", "add", "local", "169.254.0.0/16", "dev", "lo"];
        assert!(Command::new("ip").args(local).status().unwrap().success());
        let address = |text: &str| text.parse().unwrap();
        let refused = Destinations { address: address("169.254.0.0"), prefix: 16, port: None };
        let server: SocketAddr = SERVER.parse().unwrap();
        let told = |node_servers: Vec<SocketAddr>| {
            let names = Some(Names {
                servers: vec![server],
                node_servers,
                attempts: 1,
                timeout_ms: 5000,
                ndots: 1,
                ..Names::default()
            });
            let addresses = vec![address("10.77.0.1")];
            let refused = vec![refused.clone()];
            stack.set(PodNetwork { addresses, refused, names, ..PodNetwork::default() }, None);
        };
        // One that the pod brings itself is asked by nobody.
        told(Vec::new());
        stack.lookup("a.example").await.unwrap_err();
        assert_eq!(stack.report().sent_bytes, 0);

        told(vec![server]);
        let answers = name_server(SERVER);
        assert_eq!(stack.lookup("a.example").await.unwrap(), [address("192.0.2.7")]);
        answers.join().unwrap();

        let listener = TcpListener::bind(SERVER).unwrap();
        let permit = stack.permit().unwrap();
        let connected = stack.connect_tcp(permit, Options::default(), server).await;
        assert_eq!(connected.unwrap_err(), NetError::AccessDenied);
        drop(listener);
        let datagrams = "0.0.0.0:0".parse().unwrap();
        let socket =
            stack.bind_udp(stack.permit().unwrap(), Options::default(), datagrams).unwrap();
        assert_eq!(socket.try_send(b"x", Some(server)), Err(NetError::AccessDenied));
    });
}

/// A guest's socket that hears a port of the node's, and that one.
fn hears_the_node(stack: &Stack) -> (UdpSocket, SocketAddr, Claim) {
    let node = Bare::bind("0.0.0.0:0").unwrap();
    let port = node.local_addr().unwrap().port();
    let claim = stack.hand(Vec::new(), vec![(5353, node)]).unwrap();
    let (permit, own) = (stack.permit().unwrap(), "0.0.0.0:5353".parse().unwrap());
    let guest = stack.bind_udp(permit, Options::default(), own).unwrap();
    (guest, SocketAddr::new("10.77.9.9".parse().unwrap(), port), claim)
}

#[test]
fn who_comes_by_the_nodes_port_from_where_no_pod_may_go_is_not_answered() {
    on_a_network(async |_, stack| {
        let range = Destinations { address: [10, 77, 6, 0].into(), prefix: 24, port: None };
        let network = PodNetwork { refused: vec![range], ..(*stack.network()).clone() };
        stack.set(network, None);
        let (guest, node, _claim) = hears_the_node(&stack);
        let mut buffer = [0; 8];
        for (from, is_answered) in [("10.77.6.6", false), ("10.77.5.5", true)] {
            let (client, from) = answerer(from);
            client.send_to(b"who?", node).unwrap();
            assert_eq!(guest.receive(&mut buffer).await.unwrap(), (4, from));
            if is_answered {
                guest.send(b"me", Some(from)).await.unwrap();
                assert_eq!(client.recv_from(&mut buffer).unwrap(), (2, node));
            } else {
                let refused = guest.try_send(b"me", Some(from));
                assert_eq!(refused, Err(NetError::AccessDenied));
                assert_eq!(stack.0.counters.refused.report().destination, 1);
            }
        }
    });
}

#[test]
fn who_may_have_forged_a_loopback_is_let_in_by_policies_alone() {
    on_a_network(async |_, stack| {
        // What comes from a loopback to an address of another link looks as if it had
        // come by that link.
        for words in [
            "link add other type veth peer name end",
            "addr add 192.0.2.9/24 dev other",
            "link set other up",
        ] {
            assert!(Command::new("ip").args(words.split(' ')).status().unwrap().success());
        }
        let other = |port| SocketAddr::from(([192, 0, 2, 9], port));
        let ingress = |peers: &[&str]| {
            let peers = peers.iter().map(|ip| AddressRange::one(ip.parse().unwrap()));
            let rule = PolicyRule { peers: Some(peers.collect()), ports: None };
            Some(PodPolicy { ingress: Some(vec![rule]), ..PodPolicy::closed() })
        };
        for is_host in [false, true] {
            let mut network = PodNetwork { is_host, ..(*stack.network()).clone() };
            if is_host {
                network.addresses = vec![other(0).ip()];
            }
            network.policy = ingress(&[]);
            stack.set(network.clone(), None);
            let (guest, node, _claim) = hears_the_node(&stack);
            let (client, from) = answerer("127.0.0.2");
            let mut buffer = [0; 8];
            let mut ways = vec![node.port()];
            // Its own socket, where it has that of the machine.
            ways.extend(is_host.then_some(5353));
            for port in ways {
                let refused = || stack.0.counters.refused.report().policy;
                let before = refused();
                client.send_to(b"forged?", other(port)).unwrap();
                let loopback = SocketAddr::from(([127, 0, 0, 1], node.port()));
                client.send_to(b"node", loopback).unwrap();
                assert_eq!(guest.receive(&mut buffer).await.unwrap(), (4, from));
                // It may have been the second way in its turn.
                while refused() == before {
                    poll_fn(|context| guest.poll_receive_ready(context)).await;
                    let nothing = guest.try_receive(&mut buffer);
                    assert_eq!(nothing, Err(NetError::WouldBlock), "{is_host} {port}");
                }
                network.policy = ingress(&["127.0.0.2"]);
                stack.set(network.clone(), None);
                client.send_to(b"forged?", other(port)).unwrap();
                assert_eq!(guest.receive(&mut buffer).await.unwrap(), (7, from));
                network.policy = ingress(&[]);
                stack.set(network.clone(), None);
            }
        }
    });
}

#[test]
fn at_all_addresses_of_ipv6_nobody_is_heard_who_comes_by_ipv4() {
    on_a_network(async |_, stack| {
        // With the node's network, of a node of IPv4 alone.
        let ip = "10.77.0.1".parse().unwrap();
        let network = PodNetwork {
            addresses: vec![ip],
            is_host: true,
            shares_loopback: true,
            ..PodNetwork::default()
        };
        stack.set(network, None);
        // One port is declared, and bound by the agent as for such a pod.
        let handed = [ip, Family::V4.localhost(), Family::V6.localhost()]
            .map(|ip| (7071, TcpListener::bind((ip, 7071)).unwrap()));
        let _claim = stack.hand(handed.into(), Vec::new()).unwrap();
        let listen = |family: Family, port| {
            let bound = stack.bind_tcp(SocketAddr::new(family.wildcard(), port)).unwrap();
            bound.listen(stack.permit().unwrap(), Options::default(), 8).unwrap()
        };
        let call = |family: Family, port| {
            std::net::TcpStream::connect((family.localhost(), port)).map_err(|error| error.kind())
        };
        for port in [7070, 7071] {
            let _six = listen(Family::V6, port);
            call(Family::V6, port).unwrap();
            let refused = call(Family::V4, port).unwrap_err();
            assert_eq!(refused, std::io::ErrorKind::ConnectionRefused, "{port}");
            // The port is another's there, as in WASI everywhere.
            let _four = listen(Family::V4, port);
            call(Family::V4, port).unwrap();
        }
    });
}
