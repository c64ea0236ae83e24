//! Ctrl-C: pods end within their grace period, or at once if asked twice.

use std::time::Duration;

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    net::{TcpStream, UnixListener},
    process::Child,
    time::timeout,
};

use crate::machine::{
    LIMIT, Machine, answer, ask, end, free_port, guest, interrupt, stderr, until_served,
};

#[tokio::test]
async fn an_interrupt_stops_the_pod_within_its_grace_period() {
    let machine = Machine::new();
    let mut child = machine.command(&["run", &guest("hello.wasm"), "--", "tick"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    timeout(LIMIT, lines.next_line()).await.expect("the guest ticks").unwrap();
    interrupt(&child);
    // A module has no way to be told, so it is stopped at once.
    assert_eq!(end(&mut child).await, 143);
}

#[tokio::test]
async fn an_interrupt_before_the_pods_are_taken_ends_it_and_says_so() {
    let machine = Machine::new();
    // An agent that is there and says nothing.
    let run = machine.root.path().join("run");
    std::fs::create_dir(&run).unwrap();
    let agent = UnixListener::bind(run.join("agent.sock")).unwrap();
    let child = machine.command(&["run", &guest("hello.wasm")]).spawn().unwrap();
    let asked = async {
        loop {
            let (mut stream, _) = agent.accept().await.unwrap();
            if stream.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {
                return stream;
            }
        }
    };
    let _held = timeout(LIMIT, asked).await.expect("it asks");
    interrupt(&child);
    let output = timeout(LIMIT, child.wait_with_output()).await.expect("it ends").unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = stderr(&output);
    assert!(said.contains("interrupted before the pods were taken"), "{said}");
}

/// A server in the foreground that is answering a request, which takes so long.
async fn busy(machine: &Machine, port: u16, work: Duration) -> (Child, TcpStream) {
    machine.write("http.wasm", std::fs::read(guest("http.wasm")).unwrap());
    let manifest = machine.write(
        "pod.yaml",
        format!(
            r"
apiVersion: v1
kind: Pod
metadata: {{name: server}}
spec:
  terminationGracePeriodSeconds: 3000
  containers:
  - {{name: app, image: http, ports: [{{containerPort: {port}}}]}}
"
        ),
    );
    let child = machine.command(&["run", &manifest]).spawn().unwrap();
    until_served(port).await;
    krustlet_testkit::eventually("nothing is being answered", LIMIT, async || {
        machine.memory().await == "0B"
    })
    .await;
    let begun = ask(port, &format!("/sleep?ms={}", work.as_millis())).await.unwrap();
    krustlet_testkit::eventually("an instance is at work", LIMIT, async || {
        machine.memory().await != "0B"
    })
    .await;
    (child, begun)
}

#[tokio::test]
async fn a_server_has_its_grace_period_to_finish_what_it_has_begun() {
    let machine = Machine::new();
    let port = free_port().await;
    let (mut child, begun) = busy(&machine, port, Duration::from_secs(3)).await;
    interrupt(&child);
    krustlet_testkit::eventually("it listens no more", LIMIT, async || {
        ask(port, "/").await.is_err()
    })
    .await;
    // 143 would be its code too if it had been cut off; its answer tells.
    let whole = answer(begun).await.unwrap();
    assert!(whole.starts_with("HTTP/1.1 200 ") && whole.contains("slept"), "{whole:?}");
    assert_eq!(end(&mut child).await, 143);
}

#[tokio::test]
async fn a_second_interrupt_does_not_wait_for_the_grace_period() {
    let machine = Machine::new();
    let port = free_port().await;
    let (mut child, begun) = busy(&machine, port, Duration::from_secs(50)).await;
    interrupt(&child);
    krustlet_testkit::eventually("it listens no more", LIMIT, async || {
        ask(port, "/").await.is_err()
    })
    .await;
    assert!(child.try_wait().unwrap().is_none(), "it is given its time");
    interrupt(&child);
    // Killed, and not ended after it had answered.
    assert_eq!(end(&mut child).await, 137);
    drop(begun);
}
