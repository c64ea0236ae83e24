//! What pods reach beyond the machine: another one, behind a link, with servers of
//! both families and a name server.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::mpsc,
    thread,
};

use crate::machine::{Machine, guest};

/// The other machine.
const FAR: [&str; 2] = ["192.0.2.1", "2001:db8::1"];

fn ip(words: &str) {
    let done = Command::new("ip").args(words.split(' ')).status().expect("iproute2 is installed");
    assert!(done.success(), "ip {words}");
}

/// Gives this thread, and what it starts, a network of its own.
pub(crate) fn leave() {
    // SAFETY: descriptors stay as they are.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
    ip("link set lo up");
}

/// Puts this thread on a machine of its own, `192.0.2.2` and `2001:db8::2`, beside
/// another one with servers.
fn beside_another() {
    leave();
    let (tell, told) = mpsc::channel();
    let (go_on, linked) = mpsc::channel();
    let (served, ready) = mpsc::channel();
    let other = thread::spawn(move || {
        leave();
        tell.send(rustix::thread::gettid().as_raw_nonzero()).unwrap();
        linked.recv().unwrap();
        ip("address add 192.0.2.1/24 dev far");
        ip("address add 2001:db8::1/64 dev far nodad");
        ip("link set far up");
        for at in FAR.map(|far| far.parse().unwrap()) {
            serve(at);
        }
        served.send(()).unwrap();
    });
    let thread_id = told.recv().unwrap();
    ip(&format!("link add near type veth peer name far netns {thread_id}"));
    ip("address add 192.0.2.2/24 dev near");
    ip("address add 2001:db8::2/64 dev near nodad");
    ip("link set near up");
    go_on.send(()).unwrap();
    ready.recv().expect("the other machine is there");
    other.join().unwrap();
}

/// Answers HTTP at port 80, each by the address of who asks; datagrams at port 7;
/// and questions for names at port 53.
fn serve(at: IpAddr) {
    let web = TcpListener::bind((at, 80)).unwrap();
    let names = TcpListener::bind((at, 53)).unwrap();
    let [echo, datagrams] = [7, 53].map(|port| UdpSocket::bind((at, port)).unwrap());
    thread::spawn(move || web.incoming().map_while(Result::ok).for_each(greet));
    thread::spawn(move || names.incoming().map_while(Result::ok).for_each(answer_at_length));
    thread::spawn(move || for_each(&echo, |text, _| text.to_vec()));
    thread::spawn(move || for_each(&datagrams, |question, _| answer(question, true)));
}

fn for_each(socket: &UdpSocket, answer: impl Fn(&[u8], SocketAddr) -> Vec<u8>) {
    let mut buffer = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        socket.send_to(&answer(&buffer[..length], from), from).unwrap();
    }
}

/// Who only connects is let go.
fn greet(mut stream: TcpStream) {
    let mut asked = [0; 4096];
    if matches!(stream.read(&mut asked), Ok(1..)) {
        let text = format!("{}\n", stream.peer_addr().unwrap().ip());
        let head = "HTTP/1.1 200 OK\r\nConnection: close\r\n";
        write!(stream, "{head}Content-Length: {}\r\n\r\n{text}", text.len()).unwrap();
    }
}

fn answer_at_length(mut stream: TcpStream) {
    let mut length = [0; 2];
    while stream.read_exact(&mut length).is_ok() {
        let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut question).unwrap();
        let answer = answer(&question, false);
        let length = u16::try_from(answer.len()).unwrap();
        stream.write_all(&[&length.to_be_bytes()[..], &answer].concat()).unwrap();
    }
}

/// What the name server says (RFC 1035, 4.1): names that begin with `four` have an
/// address of IPv4 only, with `six` of IPv6. An answer about a name that begins with
/// `long` fits no datagram.
fn answer(question: &[u8], is_datagram: bool) -> Vec<u8> {
    let begins = |name: &str| question[13..].starts_with(name.as_bytes());
    // Behind the name's last, empty label.
    let end = 12 + question[12..].iter().position(|byte| *byte == 0).unwrap() + 5;
    let found = match (&question[end - 4..end - 2], FAR.map(|far| far.parse::<IpAddr>().unwrap())) {
        ([0, 1], [IpAddr::V4(v4), _]) if !begins("six") => v4.octets().to_vec(),
        ([0, 28], [_, IpAddr::V6(v6)]) if !begins("four") => v6.octets().to_vec(),
        _ => Vec::new(),
    };
    let is_cut = is_datagram && begins("long");
    let has_answer = !is_cut && !found.is_empty();
    let flags = [0x81 | u8::from(is_cut) << 1, 0x80];
    let counts = [0, 1, 0, u8::from(has_answer), 0, 0, 0, 0];
    let mut answer = [&question[..2], &flags, &counts, &question[12..end]].concat();
    if has_answer {
        // The name of the question, its type and class, a minute.
        answer.extend([0xc0, 12]);
        answer.extend_from_slice(&question[end - 4..end]);
        answer.extend([0, 0, 0, 60, 0, u8::try_from(found.len()).unwrap()]);
        answer.extend(found);
    }
    answer
}

/// A pod of programs that each run once.
fn pod(machine: &Machine, name: &str, host_network: bool, server: &str) -> String {
    let container = |(name, image, args): (&str, &str, Vec<&str>)| {
        format!("  - {{name: {name}, image: {image}, args: {args:?}}}\n")
    };
    let [v4, v6] = FAR;
    let containers = [
        ("connect4", "net", vec!["connect", v4, "80"]),
        ("connect6", "net", vec!["connect", v6, "80"]),
        ("datagram4", "net", vec!["udp-get", v4, "7", "echoed by 4"]),
        ("datagram6", "net", vec!["udp-get", v6, "7", "echoed by 6"]),
        ("lookup", "net", vec!["lookup", "both.test"]),
        ("third4", "net3", vec!["connect", v4, "80"]),
        ("third6", "net3", vec!["udp-get", v6, "7", "echoed by 6"]),
        (
            "fetch",
            "fetch",
            vec![
                "http://192.0.2.1/",
                "http://[2001:db8::1]/",
                "http://four.test/",
                "http://six.test/",
                "http://long.test/",
            ],
        ),
    ]
    .map(container);
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  \
         hostNetwork: {host_network}\n  dnsPolicy: None\n  \
         dnsConfig: {{nameservers: [\"{server}\"]}}\n  containers:\n{}",
        containers.concat()
    );
    machine.write("pod.yaml", manifest)
}

#[tokio::test]
async fn pods_reach_what_the_machine_reaches_by_address_and_by_name() {
    beside_another();
    let machine = Machine::new();
    for image in ["net.wasm", "net3.wasm", "fetch.wasm"] {
        machine.write(image, std::fs::read(guest(image)).unwrap());
    }
    for (name, host_network, server) in [("own", false, FAR[0]), ("of-node", true, FAR[1])] {
        let said = machine.ok(&["run", &pod(&machine, name, host_network, server)]).await;
        let of = |name: &str| {
            let head = format!("[{name}] ");
            said.lines().filter_map(|line| line.strip_prefix(&head)).collect::<Vec<_>>()
        };
        for (name, local) in [
            ("connect4", "local 192.0.2.2:"),
            ("connect6", "local [2001:db8::2]:"),
            ("third4", "local 192.0.2.2:"),
        ] {
            let lines = of(name);
            assert!(lines[0] == "ok" && lines[1].starts_with(local), "{said}");
        }
        for (name, echo) in [("datagram4", 4), ("datagram6", 6), ("third6", 6)] {
            assert_eq!(of(name), [format!("echoed by {echo}")], "{said}");
        }
        assert_eq!(of("lookup"), FAR, "{said}");
        let seen = ["192.0.2.2", "2001:db8::2", "192.0.2.2", "2001:db8::2", "192.0.2.2"];
        assert_eq!(of("fetch"), seen.map(|ip| ["200", ip]).concat(), "{said}");
    }
}
