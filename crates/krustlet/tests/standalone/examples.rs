//! The examples do what their pages say.

use std::{net::TcpListener, process::Command};

use krustlet_testkit::{Authority, serve_https};

use crate::machine::{
    Machine, answer, ask, end, example, free_port, interrupt, output, stderr, until_served,
};

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

#[tokio::test]
async fn a_client_goes_only_where_its_pods_list_says() {
    let machine = Machine::new();
    let manifest = std::fs::read_to_string(example("outbound/pod.yaml")).unwrap();
    machine.write("fetch.wasm", std::fs::read(example("outbound/fetch.wasm")).unwrap());
    let name = "http://elsewhere.example.net/";
    assert!(manifest.contains(name), "{manifest}");
    for (to, expected) in
        [(name, "HttpRequestDenied\n"), ("http://203.0.113.7/", "DestinationIpProhibited\n")]
    {
        let manifest = machine.write("pod.yaml", manifest.replace(name, to));
        let ran = machine.krustlet(&["run", &manifest]).await;
        assert_eq!(String::from_utf8_lossy(&ran.stdout), expected, "{ran:?}");
        assert_eq!(ran.status.code(), Some(1));
    }
    let bad = manifest.replace("*.example.org", "http://a");
    let manifest = machine.write("pod.yaml", bad);
    let ran = machine.krustlet(&["run", &manifest]).await;
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(said.contains("InvalidNetworkAnnotation") && said.contains("\"http://a\""), "{said}");
    assert_eq!(ran.status.code(), Some(1));
}

/// Gives this thread, and what it starts, a network of its own with one address
/// besides the loopback's.
fn own_network(address: &str) {
    // SAFETY: descriptors stay as they are.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
    for args in [&["link", "set", "lo", "up"][..], &["address", "add", address, "dev", "lo"]] {
        let done = Command::new("ip").args(args).status().expect("iproute2 is installed");
        assert!(done.success(), "ip {args:?}");
    }
}

#[tokio::test]
async fn a_client_believes_the_authority_that_its_pod_names() {
    own_network("192.0.2.1/32");
    let authority = Authority::new();
    let listener = TcpListener::bind("192.0.2.1:0").unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    serve_https(listener, authority.server("192.0.2.1"), "believed\n");

    let machine = Machine::new();
    machine.write("fetch.wasm", std::fs::read(example("tls/fetch.wasm")).unwrap());
    let manifest = std::fs::read_to_string(example("tls/pod.yaml")).unwrap();
    assert!(manifest.contains("https://www.example.org/"), "{manifest}");
    let manifest = manifest.replace("https://www.example.org/", &url);
    let path = machine.write("pod.yaml", &manifest);
    let ran = machine.krustlet(&["run", &path]).await;
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(said.starts_with("the certificate of 192.0.2.1:"), "{ran:?}");
    assert!(said.ends_with("[\"/etc/authority/ca.crt\"]\nTlsCertificateError\n"), "{ran:?}");
    assert_eq!(ran.status.code(), Some(1));

    // The manifest's certificate, line by line as far as it is indented.
    let begin = manifest.find("    -----BEGIN").unwrap();
    let end = manifest.find("---\napiVersion: v1\nkind: Pod").unwrap();
    let own: Vec<_> = authority.pem().lines().map(|line| format!("    {line}\n")).collect();
    let own = format!("{}{}{}", &manifest[..begin], own.concat(), &manifest[end..]);
    let text = machine.ok(&["run", &machine.write("pod.yaml", own)]).await;
    assert_eq!(text, "200\nbelieved\n");
}

/// A pod that says nothing believes whom the machine believes, and the machine says so
/// in the agent's environment.
#[tokio::test]
async fn a_client_believes_the_authorities_of_the_machine() {
    own_network("192.0.2.1/32");
    let authority = Authority::new();
    let listener = TcpListener::bind("192.0.2.1:0").unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    serve_https(listener, authority.server("192.0.2.1"), "believed\n");
    for (believed, expected) in
        [(authority, "200\nbelieved\n"), (Authority::new(), "TlsCertificateError\n")]
    {
        let mut machine = Machine::new();
        machine.write("authorities.pem", believed.pem());
        // From where the agent is started.
        machine.env.push(("SSL_CERT_FILE", "authorities.pem".into()));
        let mut run = machine.command(&["run", &example("tls/fetch.wasm"), "--", &url]);
        let ran = output(run.current_dir(machine.root.path())).await;
        assert_eq!(String::from_utf8_lossy(&ran.stdout), expected, "{ran:?}");
        assert_eq!(ran.status.success(), expected.starts_with("200"), "{ran:?}");
    }
    let mut machine = Machine::new();
    machine.env.push(("SSL_CERT_FILE", "/nowhere/ca.pem".into()));
    let said = stderr(&machine.krustlet(&["run", &example("tls/fetch.wasm"), "--", &url]).await);
    assert!(said.contains("SSL_CERT_FILE names /nowhere/ca.pem: No such file"), "{said}");
}
