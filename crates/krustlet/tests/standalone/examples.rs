//! The examples do what their pages say.

use crate::machine::{Machine, answer, ask, end, example, free_port, interrupt, until_served};

#[tokio::test]
async fn the_first_example_prints_what_its_guest_prints() {
    let text = Machine::new().ok(&["run", &example("hello/pod.yaml")]).await;
    assert_eq!(text, "Hello from WebAssembly!\narguments: [\"hello\"]\nenvironment: 2 variables\n");
}

#[tokio::test]
async fn config_maps_and_secrets_of_the_same_file_are_seen_as_files() {
    let text = Machine::new().ok(&["run", &example("volumes/pod.yaml")]).await;
    assert!(
        text.contains("Good morning from a ConfigMap.") && text.contains("swordfish"),
        "{text}"
    );
}

#[tokio::test]
async fn the_server_answers_on_its_port() {
    let machine = Machine::new();
    let port = free_port().await;
    // Another port than its own, which may be taken on this machine.
    let manifest = std::fs::read_to_string(example("http/pod.yaml")).unwrap();
    assert!(manifest.contains("containerPort: 8080"), "{manifest}");
    let manifest = manifest.replace("8080", &port.to_string());
    machine.write("http.wasm", std::fs::read(example("http/http.wasm")).unwrap());
    let manifest = machine.write("pod.yaml", manifest);

    let mut child = machine.command(&["run", &manifest]).spawn().unwrap();
    until_served(port).await;
    let greeting = answer(ask(port, "/").await.unwrap()).await.unwrap();
    assert!(greeting.starts_with("HTTP/1.1 200 "), "{greeting}");
    assert!(greeting.contains("Hello from WebAssembly!"), "{greeting}");
    let env = answer(ask(port, "/env").await.unwrap()).await.unwrap();
    assert!(env.contains("GREETING=from a pod"), "{env}");
    interrupt(&child);
    assert_eq!(end(&mut child).await, 143);
    assert!(ask(port, "/").await.is_err(), "it listens no more");
}
