//! Look-ups against servers that do what real ones do, and what they should not.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use futures::future::BoxFuture;
use krustlet_protocol::{Host, NamedAddress, Names, ServiceName};
use krustlet_resolver::{Datagrams, Families, LookupError, Network, Resolver, Stream};
use simple_dns::{
    CLASS, Name, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE,
    rdata::{A, AAAA, CNAME, RData},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
};

/// Sockets of this machine, and a count of how many were made.
#[derive(Debug, Default)]
struct Direct {
    datagrams: AtomicUsize,
    streams: AtomicUsize,
}

struct Udp(UdpSocket);

impl Network for Direct {
    fn datagrams(&self, server: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Datagrams>>> {
        self.datagrams.fetch_add(1, SeqCst);
        Box::pin(async move {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            socket.connect(server).await?;
            Ok(Box::new(Udp(socket)) as Box<dyn Datagrams>)
        })
    }

    fn stream(&self, server: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        self.streams.fetch_add(1, SeqCst);
        Box::pin(async move { Ok(Box::new(TcpStream::connect(server).await?) as Box<dyn Stream>) })
    }

    fn service(&self, namespace: &str, name: &str) -> io::Result<Option<ServiceName>> {
        let known = match (namespace, name) {
            ("n", "web") => ServiceName::Addresses(vec![ip("10.96.0.7"), ip("fd00::7")]),
            ("n", "db") => {
                let one = |address, name: &str| NamedAddress { address, name: name.into() };
                let endpoints = [one(ip("10.1.0.2"), "db-0"), one(ip("10.1.0.3"), "db-1")];
                ServiceName::Endpoints(endpoints.to_vec())
            }
            ("n", "other") => ServiceName::Elsewhere("web.n.svc.cluster.local".into()),
            ("n", "outside") => ServiceName::Elsewhere("outside.example".into()),
            ("n", "circle") => ServiceName::Elsewhere("circle.n.svc.cluster.local".into()),
            ("n", "broken") => return Err(io::ErrorKind::InvalidData.into()),
            _ => return Ok(None),
        };
        Ok(Some(known))
    }
}

impl Datagrams for Udp {
    fn send<'a>(&'a self, bytes: &'a [u8]) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move { self.0.send(bytes).await.map(drop) })
    }

    fn receive<'a>(&'a self, buffer: &'a mut [u8]) -> BoxFuture<'a, io::Result<usize>> {
        Box::pin(self.0.recv(buffer))
    }
}

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Datagram,
    Stream,
}

/// A server: what it is asked, it answers with these messages, one after another.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

type Answers = dyn Fn(&Packet<'_>, By) -> Vec<Vec<u8>> + Send + Sync;

impl Server {
    async fn start(
        answers: impl Fn(&Packet<'_>, By) -> Vec<Vec<u8>> + Send + Sync + 'static,
    ) -> Self {
        let answers: Arc<Answers> = Arc::new(answers);
        let (datagrams, streams) = loop {
            let datagrams = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            // Another process may have this port for streams.
            if let Ok(streams) = TcpListener::bind(datagrams.local_addr().unwrap()).await {
                break (datagrams, streams);
            }
        };
        let address = datagrams.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let note = {
            let asked = Arc::clone(&asked);
            move |question: &Packet<'_>| {
                let query = &question.questions[0];
                let line = format!("{} {:?}", query.qname, query.qtype);
                asked.lock().unwrap().push(line);
            }
        };
        let mut tasks = JoinSet::new();
        let (answer, noted) = (Arc::clone(&answers), note.clone());
        tasks.spawn(async move {
            let mut buffer = [0; 512];
            loop {
                let (length, from) = datagrams.recv_from(&mut buffer).await.unwrap();
                let question = Packet::parse(&buffer[..length]).unwrap();
                noted(&question);
                for message in answer(&question, By::Datagram) {
                    datagrams.send_to(&message, from).await.unwrap();
                }
            }
        });
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = streams.accept().await.unwrap();
                let length = stream.read_u16().await.unwrap();
                let mut bytes = vec![0; length.into()];
                stream.read_exact(&mut bytes).await.unwrap();
                let question = Packet::parse(&bytes).unwrap();
                note(&question);
                for message in answers(&question, By::Stream) {
                    stream.write_u16(message.len().try_into().unwrap()).await.unwrap();
                    stream.write_all(&message).await.unwrap();
                }
            }
        });
        Self { address, asked, _tasks: tasks }
    }

    fn asked(&self) -> Vec<String> {
        let mut asked = self.asked.lock().unwrap().clone();
        asked.sort();
        asked
    }
}

/// An answer without records.
fn reply<'a>(question: &Packet<'a>) -> Packet<'a> {
    let mut reply = Packet::new_reply(question.id());
    reply.questions.clone_from(&question.questions);
    reply
}

fn with<'a>(question: &Packet<'a>, ttl: u32, data: &[RData<'a>]) -> Packet<'a> {
    let mut reply = reply(question);
    for data in data {
        let name = question.questions[0].qname.clone();
        reply.answers.push(ResourceRecord::new(name, CLASS::IN, ttl, data.clone()));
    }
    reply
}

fn bytes(packet: &Packet<'_>) -> Vec<u8> {
    packet.build_bytes_vec_compressed().unwrap()
}

fn coded(question: &Packet<'_>, code: RCODE) -> Vec<Vec<u8>> {
    let mut reply = reply(question);
    *reply.rcode_mut() = code;
    vec![bytes(&reply)]
}

fn v4(last: u8) -> RData<'static> {
    RData::A(A { address: u32::from_be_bytes([192, 0, 2, last]) })
}

/// Answers questions for IPv4 with this address, others with nothing.
fn knows(question: &Packet<'_>, last: u8) -> Vec<Vec<u8>> {
    let is_v4 = question.questions[0].qtype == QTYPE::TYPE(TYPE::A);
    let data = if is_v4 { vec![v4(last)] } else { vec![] };
    vec![bytes(&with(question, 30, &data))]
}

fn names(servers: &[&Server]) -> Names {
    Names {
        servers: servers.iter().map(|server| server.address).collect(),
        ndots: 1,
        timeout_ms: 20_000,
        attempts: 1,
        ..Names::default()
    }
}

const V4: Families = Families { v4: true, v6: false, v6_first: false };
const BOTH: Families = Families { v4: true, v6: true, v6_first: false };

fn resolver() -> (Arc<Direct>, Resolver) {
    let network = Arc::new(Direct::default());
    (Arc::clone(&network), Resolver::new(network, 4))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

#[tokio::test]
async fn both_kinds_are_asked_for_and_the_pods_own_comes_first() {
    let server = Server::start(|question, _| {
        let six: Ipv6Addr = "2001:db8::1".parse().unwrap();
        let data = match question.questions[0].qtype {
            QTYPE::TYPE(TYPE::A) => v4(1),
            _ => RData::AAAA(AAAA { address: six.into() }),
        };
        vec![bytes(&with(question, 30, &[data]))]
    })
    .await;
    let (_, resolver) = resolver();
    let v6: IpAddr = "2001:db8::1".parse().unwrap();
    let found = resolver.lookup("a.example", &names(&[&server]), BOTH).await;
    assert_eq!(found, Ok(vec![address(1), v6]));
    let v6_first = Families { v6_first: true, ..BOTH };
    let found = resolver.lookup("a.example", &names(&[&server]), v6_first).await;
    assert_eq!(found, Ok(vec![v6, address(1)]));
    assert_eq!(
        server.asked(),
        ["a.example TYPE(A)", "a.example TYPE(AAAA)"],
        "asked once, then known"
    );
    let found = resolver.lookup("b.example", &names(&[&server]), V4).await;
    assert_eq!(found, Ok(vec![address(1)]));
    assert_eq!(server.asked()[2..], ["b.example TYPE(A)"]);
}

#[tokio::test]
async fn the_search_list_ends_at_the_first_name_that_has_an_address() {
    let server =
        Server::start(|question, _| match question.questions[0].qname.to_string().as_str() {
            "web.n.svc.cluster.local" => knows(question, 7),
            "bare.n.svc.cluster.local" => coded(question, RCODE::NoError),
            "bare.svc.cluster.local" => knows(question, 8),
            _ => coded(question, RCODE::NameError),
        })
        .await;
    let (_, resolver) = resolver();
    let searches = vec!["n.svc.cluster.local".into(), "svc.cluster.local".into()];
    let names = Names { searches, ndots: 5, ..names(&[&server]) };
    assert_eq!(resolver.lookup("web", &names, V4).await, Ok(vec![address(7)]));
    assert_eq!(server.asked(), ["web.n.svc.cluster.local TYPE(A)"]);
    assert_eq!(resolver.lookup("bare", &names, V4).await, Ok(vec![address(8)]));
    assert_eq!(resolver.lookup("none", &names, V4).await, Err(LookupError::NotFound));
    assert!(server.asked().contains(&"none TYPE(A)".to_owned()));
}

#[tokio::test]
async fn what_does_not_fit_into_a_datagram_comes_by_a_connection() {
    let many: Vec<RData> = (0..100).map(v4).collect();
    let server = Server::start(move |question, by| match by {
        By::Datagram => {
            let mut cut = reply(question);
            cut.set_flags(PacketFlag::TRUNCATION);
            vec![bytes(&cut)]
        }
        By::Stream => vec![bytes(&with(question, 30, &many))],
    })
    .await;
    let (network, resolver) = resolver();
    let found = resolver.lookup("big.example", &names(&[&server]), V4).await.unwrap();
    assert_eq!(found.len(), 100);
    assert_eq!(network.streams.load(SeqCst), 1);
}

#[tokio::test]
async fn what_answers_another_question_is_not_believed() {
    let server = Server::start(|question, _| {
        let forged = with(question, 30, &[v4(66)]);
        let mut wrong_id = forged.clone();
        wrong_id.set_id(question.id().wrapping_add(1));
        let mut wrong_name = forged.clone();
        wrong_name.questions[0].qname = Name::new_unchecked("other.example");
        let forged = [wrong_id, wrong_name].map(|packet| bytes(&packet));
        [&forged[..], &[b"noise".to_vec()], &knows(question, 1)].concat()
    })
    .await;
    let (_, resolver) = resolver();
    let found = resolver.lookup("a.example", &names(&[&server]), V4).await;
    assert_eq!(found, Ok(vec![address(1)]));
}

#[tokio::test]
async fn a_flood_of_wrong_answers_ends_the_question() {
    let server = Server::start(|_, _| vec![b"noise".to_vec(); 100]).await;
    let (_, resolver) = resolver();
    let found = resolver.lookup("a.example", &names(&[&server]), V4).await;
    assert_eq!(found, Err(LookupError::Silence));
}

#[tokio::test]
async fn another_server_is_asked_when_one_fails_or_is_silent() {
    let fails = Server::start(|question, _| coded(question, RCODE::ServerFailure)).await;
    let silent = Server::start(|_, _| vec![]).await;
    let good = Server::start(|question, _| knows(question, 3)).await;
    let (_, resolver) = resolver();
    let soon = |servers: &[&Server]| Names { timeout_ms: 200, attempts: 2, ..names(servers) };
    for servers in [[&fails, &good], [&silent, &good]] {
        let found = resolver.lookup("a.example", &soon(&servers), V4).await;
        assert_eq!(found, Ok(vec![address(3)]));
    }
    let found = resolver.lookup("a.example", &soon(&[&fails]), V4).await;
    assert_eq!(found, Err(LookupError::Failed { code: "SERVFAIL".into() }));
    let before = silent.asked().len();
    let found = resolver.lookup("b.example", &soon(&[&silent]), V4).await;
    assert_eq!(found, Err(LookupError::Silence));
    assert_eq!(silent.asked().len() - before, 2, "each attempt asks again");
}

#[tokio::test]
async fn a_failure_is_not_remembered() {
    let times = AtomicUsize::new(0);
    let server = Server::start(move |question, _| match times.fetch_add(1, SeqCst) {
        0 => coded(question, RCODE::ServerFailure),
        _ => knows(question, 1),
    })
    .await;
    let (_, resolver) = resolver();
    assert!(resolver.lookup("a.example", &names(&[&server]), V4).await.is_err());
    assert!(resolver.lookup("a.example", &names(&[&server]), V4).await.is_ok());
}

#[tokio::test]
async fn names_that_stand_for_each_other_lead_nowhere() {
    let server = Server::start(|question, _| {
        let mut reply = reply(question);
        for (from, to) in [("a.example", "b.example"), ("b.example", "a.example")] {
            let [from, to] = [from, to].map(Name::new_unchecked);
            let alias = RData::CNAME(CNAME(to));
            reply.answers.push(ResourceRecord::new(from, CLASS::IN, 30, alias));
        }
        vec![bytes(&reply)]
    })
    .await;
    let (_, resolver) = resolver();
    let found = resolver.lookup("a.example", &names(&[&server]), V4).await;
    assert!(matches!(found, Err(LookupError::Failed { .. })), "{found:?}");
}

#[tokio::test]
async fn a_huge_time_to_live_is_not_believed() {
    let server = Server::start(|question, _| {
        vec![bytes(&with(question, i32::MAX.cast_unsigned(), &[v4(1)]))]
    })
    .await;
    let (_, resolver) = resolver();
    let names = names(&[&server]);
    for _ in 0..2 {
        assert!(resolver.lookup("a.example", &names, V4).await.is_ok());
    }
    assert_eq!(server.asked().len(), 1);
    // An hour and a second later, whatever the server said.
    tokio::time::pause();
    tokio::time::advance(std::time::Duration::from_secs(3601)).await;
    tokio::time::resume();
    assert!(resolver.lookup("a.example", &names, V4).await.is_ok());
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test]
async fn no_server_is_asked_for_what_the_pod_knows_itself() {
    let (network, resolver) = resolver();
    let host = |address: &str, names: &[&str]| Host {
        address: address.parse().unwrap(),
        names: names.iter().map(ToString::to_string).collect(),
    };
    let names = Names {
        hosts: vec![
            host("192.0.2.9", &["alias", "Alias.example"]),
            host("2001:db8::9", &["alias", "six"]),
        ],
        ..Names::default()
    };
    let (four, six) = ("192.0.2.9".parse().unwrap(), "2001:db8::9".parse().unwrap());
    let local = || Ok(vec![Ipv4Addr::LOCALHOST.into(), "::1".parse().unwrap()]);
    for (name, families, wanted) in [
        ("ALIAS.example.", V4, Ok(vec![four])),
        ("alias", BOTH, Ok(vec![four, six])),
        ("alias", V4, Ok(vec![four])),
        ("192.0.2.77", V4, Ok(vec![address(77)])),
        ("::2", V4, Ok(vec!["::2".parse().unwrap()])),
        ("[::2]", V4, Ok(vec!["::2".parse().unwrap()])),
        ("localhost", V4, local()),
        ("db.localhost.", V4, local()),
        ("six", V4, Err(LookupError::NoServers)),
        ("a..b", V4, Err(LookupError::Invalid)),
        ("", V4, Err(LookupError::Invalid)),
        (".", V4, Err(LookupError::Invalid)),
        ("[192.0.2.1]", V4, Err(LookupError::Invalid)),
    ] {
        assert_eq!(resolver.lookup(name, &names, families).await, wanted, "{name:?}");
    }
    assert_eq!(network.datagrams.load(SeqCst), 0);
}

#[tokio::test]
async fn only_so_many_look_ups_are_under_way_at_once() {
    let gate = Arc::new(AtomicUsize::new(0));
    let server = Server::start(|_, _| vec![]).await;
    let network = Arc::new(Direct::default());
    let resolver = Arc::new(Resolver::new(Arc::clone(&network) as Arc<dyn Network>, 2));
    let mut tasks = JoinSet::new();
    for number in 0..6 {
        let (resolver, names) = (Arc::clone(&resolver), names(&[&server]));
        let gate = Arc::clone(&gate);
        tasks.spawn(async move {
            gate.fetch_add(1, SeqCst);
            resolver.lookup(&format!("n{number}.example"), &names, V4).await
        });
    }
    // All have begun, and two of them have asked.
    while gate.load(SeqCst) < 6 || server.asked().len() < 2 {
        tokio::task::yield_now().await;
    }
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(network.datagrams.load(SeqCst), 2);
    tasks.shutdown().await;
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_passed_over() {
    let gone = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address_of_gone = gone.local_addr().unwrap();
    drop(gone);
    let good = Server::start(|question, _| knows(question, 4)).await;
    let mut names = names(&[&good]);
    names.servers.insert(0, address_of_gone);
    let (_, resolver) = resolver();
    assert_eq!(resolver.lookup("a.example", &names, V4).await, Ok(vec![address(4)]));
}

#[tokio::test]
async fn only_so_many_look_ups_wait() {
    let server = Server::start(|_, _| vec![]).await;
    let resolver = Arc::new(Resolver::new(Arc::new(Direct::default()), 1));
    let mut tasks = JoinSet::new();
    for number in 0..1030 {
        let (resolver, names) = (Arc::clone(&resolver), names(&[&server]));
        tasks.spawn(async move { resolver.lookup(&format!("n{number}"), &names, V4).await });
    }
    // Those that find no place end at once; the others wait for the one.
    for _ in 0..6 {
        assert_eq!(tasks.join_next().await.unwrap().unwrap(), Err(LookupError::Busy));
    }
    assert_eq!(tasks.len(), 1024);
}

#[tokio::test]
async fn names_of_services_need_no_server() {
    let server = Server::start(|question, _| knows(question, 1)).await;
    let (network, resolver) = resolver();
    let searches = ["n.svc.cluster.local", "svc.cluster.local", "cluster.local"];
    let names = Names {
        cluster_domain: "cluster.local".into(),
        searches: searches.map(str::to_owned).to_vec(),
        ndots: 5,
        ..names(&[&server])
    };
    let found = async |name| resolver.lookup(name, &names, BOTH).await;
    let web = Ok(vec![ip("10.96.0.7"), ip("fd00::7")]);
    for name in ["web", "web.n", "web.n.svc", "web.n.svc.cluster.local", "other.n", "WEB.N.svc"] {
        assert_eq!(found(name).await, web, "{name}");
    }
    assert_eq!(resolver.lookup("web", &names, V4).await, Ok(vec![ip("10.96.0.7")]));
    let mut all = found("db").await.unwrap();
    all.sort();
    assert_eq!(all, [ip("10.1.0.2"), ip("10.1.0.3")]);
    assert_eq!(found("db-1.db").await, Ok(vec![ip("10.1.0.3")]));
    for none in ["none.n.svc.cluster.local.", "db-2.db.n.svc.cluster.local.", "cluster.local."] {
        assert_eq!(found(none).await, Err(LookupError::NotFound), "{none}");
    }
    let failed = Err(LookupError::Failed { code: "SERVFAIL".to_owned() });
    for bad in ["circle.n.svc.cluster.local.", "broken.n.svc.cluster.local."] {
        assert_eq!(found(bad).await, failed, "{bad}");
    }
    assert_eq!(network.datagrams.load(SeqCst), 0, "no server was asked");

    // All else is the servers' to know.
    for elsewhere in ["outside.n", "a.example"] {
        assert_eq!(found(elsewhere).await, Ok(vec![address(1)]), "{elsewhere}");
    }
    let alone = Names { servers: Vec::new(), ..names.clone() };
    assert_eq!(resolver.lookup("web", &alone, BOTH).await, web);
    assert_eq!(resolver.lookup("a.example", &alone, BOTH).await, Err(LookupError::NoServers));
}
