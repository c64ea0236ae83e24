//! The commands about images, with an agent and without.

use crate::{
    background::TICKER,
    machine::{LIMIT, Machine, guest, stderr, stdout},
    registry::Registry,
};

#[tokio::test]
async fn images_are_listed_and_removed_without_an_agent() {
    let machine = Machine::new();
    machine.ok(&["run", &guest("hello.wasm")]).await;
    let listed = machine.ok(&["images"]).await;
    assert!(listed.contains("localhost/hello:latest"), "{listed}");
    machine.ok(&["rmi", "localhost/hello:latest"]).await;
    let listed = machine.ok(&["images"]).await;
    assert!(!listed.contains("localhost/hello"), "{listed}");
}

#[tokio::test]
async fn a_running_agent_pushes_pulls_shows_and_removes_images() {
    let registry = Registry::start().await;
    let mut machine = Machine::new();
    machine.trust(&registry);
    machine.ok(&["run", "-d", &machine.manifest(TICKER)]).await;
    machine.until(&["ps"], "Running").await;

    let reference = registry.name("tools/hello:v1");
    // Another program than the ticker's, which is in use.
    let pushed = machine.ok(&["push", &guest("hello.p2.wasm"), &reference]).await;
    let (repository, digest) = pushed.trim_end().split_once('@').unwrap();
    assert_eq!(repository, registry.name("tools/hello"));
    assert_eq!(machine.ok(&["pull", &reference]).await, pushed);
    let listed = machine.ok(&["images"]).await;
    let row = listed.lines().find(|line| line.starts_with(&reference)).expect(&listed);
    let short = &digest.strip_prefix("sha256:").unwrap()[..12];
    assert!(row.contains(short), "{row}");

    let image: serde_json::Value =
        serde_json::from_str(&machine.ok(&["inspect", &reference]).await).unwrap();
    assert_eq!(image["id"], pushed.trim_end());
    assert_eq!(image["reference"], reference.as_str());
    assert_eq!(machine.ok(&["run", &reference, "--", "args", "x"]).await, "x\n");

    let refused = machine.krustlet(&["rmi", "hello"]).await;
    assert!(!refused.status.success(), "what runs is removed");
    assert!(stderr(&refused).contains("in use"), "{}", stderr(&refused));
    // The pod that ran it lets go of it a moment after its end.
    let removed = krustlet_testkit::eventually_some("it is removed", LIMIT, async || {
        let output = machine.krustlet(&["rmi", &reference]).await;
        output.status.success().then(|| stdout(&output))
    })
    .await;
    assert_eq!(removed, format!("removed {reference}\n"));
    let gone = machine.krustlet(&["inspect", &reference]).await;
    assert!(stderr(&gone).contains("no such image"), "{}", stderr(&gone));
    machine.ok(&["stop", "ticker", "--grace-period", "1"]).await;
}
