//! `krustlet port-forward`: what a pod keeps to itself, from outside.

use std::net::Ipv4Addr;

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpStream,
    process::ChildStdout,
    time::timeout,
};

use crate::machine::{LIMIT, Machine, guest, stderr};

/// A server that listens within its pod only.
const ECHO: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: echo}
spec:
  containers: [{name: app, image: net, args: [tcp-echo, "8081", "127.0.0.1"]}]
"#;

/// The port of the next line, which says where it leads.
async fn port(lines: &mut Lines<BufReader<ChildStdout>>, leads: &str) -> u16 {
    loop {
        let line = timeout(LIMIT, lines.next_line()).await.expect("it listens").unwrap().unwrap();
        // The other family's, where there is one.
        let Some(rest) = line.strip_prefix("Forwarding from 127.0.0.1:") else { continue };
        let (port, to) = rest.split_once(" -> ").unwrap();
        assert_eq!(to, leads);
        return port.parse().unwrap();
    }
}

async fn connect(port: u16) -> TcpStream {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap()
}

/// Sends, ends the direction, and reads to the end of the other.
async fn exchange(mut stream: TcpStream, text: &str) -> String {
    stream.write_all(text.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    timeout(LIMIT, stream.read_to_string(&mut answer)).await.expect("it ends").unwrap();
    answer
}

#[tokio::test]
async fn a_port_of_a_pods_own_localhost_is_led_to() {
    let machine = Machine::new();
    machine.write("net.wasm", std::fs::read(guest("net.wasm")).unwrap());
    machine.ok(&["run", "-d", &machine.write("pod.yaml", ECHO)]).await;
    machine.until(&["logs", "echo"], "listening on 127.0.0.1:8081").await;

    let mut forward = machine.command(&["port-forward", "echo", ":8081", ":9"]).spawn().unwrap();
    let mut lines = BufReader::new(forward.stdout.take().unwrap()).lines();
    let (open, closed) = (port(&mut lines, "8081").await, port(&mut lines, "9").await);
    assert_eq!(exchange(connect(open).await, "come in").await, "come in");
    // Several at once, and an answer before the end of what is sent.
    let mut early = connect(open).await;
    early.write_all(b"early").await.unwrap();
    let mut read = [0; 5];
    timeout(LIMIT, early.read_exact(&mut read)).await.expect("an echo").unwrap();
    assert_eq!(exchange(connect(open).await, "second").await, "second");
    assert_eq!(exchange(early, " and more").await, " and more");

    // Where nobody listens the connection ends, and it is said why.
    let mut refused = connect(closed).await;
    let mut nothing = Vec::new();
    let _ = timeout(LIMIT, refused.read_to_end(&mut nothing)).await.expect("it ends");
    assert!(nothing.is_empty());
    let mut errors = BufReader::new(forward.stderr.take().unwrap()).lines();
    let said = timeout(LIMIT, errors.next_line()).await.expect("it is said").unwrap().unwrap();
    assert!(said.contains("port 9 of the pod's loopback: the connection was refused"), "{said}");

    let missing = machine.krustlet(&["port-forward", "none", "80"]).await;
    assert!(!missing.status.success());
    assert!(stderr(&missing).contains("no pod default/none here"), "{}", stderr(&missing));
    machine.ok(&["stop", "echo", "--grace-period", "1"]).await;
}
