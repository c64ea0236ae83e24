//! Pods with addresses of their own, on a machine without a cluster.

use std::{net::IpAddr, process::Command};

use rustix::{
    mount::{MountPropagationFlags, mount_change},
    thread::{UnshareFlags, unshare_unsafe},
};

use crate::{
    machine::{LIMIT, Machine, answer, ask_at, guest, stderr},
    outside::leave,
};

const RANGES: &str = "10.99.0.0/24,fd00:99::/64";

/// A server at a port that only root may have among the machine's own, led to from
/// another one of the machine's.
const WEB: &str = r"
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: web, image: http, ports: [{containerPort: 80, hostPort: 8080}]}
";

/// The machine's links that lead to pods.
fn links() -> String {
    let shown = Command::new("ip").args(["-o", "link"]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    shown.lines().filter(|line| line.contains(": kr")).collect()
}

async fn addresses_of(machine: &Machine, pod: &str) -> Vec<IpAddr> {
    let pod = machine.ok(&["inspect", pod]).await;
    let pod: serde_json::Value = serde_json::from_str(&pod).unwrap();
    let all = pod["status"]["podIPs"].as_array().unwrap();
    all.iter().map(|one| one["ip"].as_str().unwrap().parse().unwrap()).collect()
}

#[tokio::test]
async fn pods_have_addresses_of_the_ranges_that_are_asked_for() {
    leave();
    // What is mounted here goes with this thread, however the test ends.
    // SAFETY: the thread is the test's, and no memory is unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    let machine = Machine::new();
    for image in ["http.wasm", "fetch.wasm"] {
        machine.write(image, std::fs::read(guest(image)).unwrap());
    }
    let web = machine.write("web.yaml", WEB);
    machine.ok(&["run", "-d", "--pod-cidr", RANGES, &web]).await;
    machine.until(&["ps"], "Running").await;
    let own = addresses_of(&machine, "web").await;
    assert!(machine.ok(&["ps"]).await.trim_end().ends_with(&own[0].to_string()));
    let [IpAddr::V4(v4), IpAddr::V6(v6)] = own[..] else { panic!("{own:?}") };
    assert_eq!(v4.octets()[..3], [10, 99, 0]);
    assert_eq!(v6.segments()[..4], [0xfd00, 0x99, 0, 0]);
    for at in own.iter().map(|ip| (*ip, 80)).chain([([127, 0, 0, 1].into(), 8080)]) {
        krustlet_testkit::eventually("the pod serves", LIMIT, async || {
            let Ok(asked) = ask_at(at.into(), "/").await else { return false };
            answer(asked).await.is_ok_and(|text| text.starts_with("HTTP/1.1 200 "))
        })
        .await;
    }
    assert!(ask_at(([127, 0, 0, 1], 80).into(), "/").await.is_err(), "the port is the pod's own");

    // Another pod of this agent, which has its addresses, calls the first.
    let fetch = machine.path("fetch.wasm");
    let (to_v4, to_v6) = (format!("http://{v4}/"), format!("http://[{v6}]/"));
    let said = machine.ok(&["run", &fetch, "--", &to_v4, &to_v6]).await;
    assert_eq!(said.matches("200\n").count(), 2, "{said}");
    // Nobody is given what the agent was not started for.
    let other = machine.krustlet(&["run", "--pod-cidr", "10.98.0.0/24", &fetch]).await;
    let said = stderr(&other);
    assert!(said.contains("gives pods addresses of 10.99.0.0/24,fd00:99::/64"), "{said}");
    assert_ne!(links(), "");
    machine.ok(&["stop", "web"]).await;
    machine.until_alone().await;
    krustlet_testkit::eventually("nothing is left", LIMIT, async || links().is_empty()).await;
}
