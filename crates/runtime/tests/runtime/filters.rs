//! Whom policies refuse is kept from what pods listen on.

use std::time::Duration;

use krustlet_model::policy::{PodPolicy, PolicyRule};
use tokio::time::{sleep, timeout};

use crate::bed::{Bed, LIMIT};

/// How long the filters are of what the pod `a` listens on; 0 where there is none.
async fn lengths(bed: &Bed) -> Vec<usize> {
    lengths_of(bed, "a", 1).await
}

async fn lengths_of(bed: &Bed, pod: &str, container: u8) -> Vec<usize> {
    let (_, said) = bed.exec(pod, container, &["filters"]).await.unwrap();
    said.split_whitespace().map(|length| length.parse().unwrap()).collect()
}

async fn wait_for(bed: &Bed, is_so: impl Fn(&[usize]) -> bool) {
    until(async || is_so(&lengths(bed).await)).await;
}

async fn until(is_so: impl AsyncFn() -> bool) {
    let is_so = async {
        while !is_so().await {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LIMIT, is_so).await.expect("it is as it should be");
}

/// How often the sandbox of the pod `a` was asked for what that listens on.
async fn asks(bed: &Bed) -> u32 {
    let (_, said) = bed.exec("a", 1, &["lend-asks"]).await.unwrap();
    said.parse().unwrap()
}

/// What another pod listens on is filtered, and only when it is looked at a second
/// time: whatever was to be looked at before, once or twice, has been then.
async fn another_is_filtered(bed: &Bed) {
    let mut events = bed.run("b").await;
    bed.start("b", 2, &mut events).await;
    for what in ["listen", "refuse-to-lend"] {
        bed.exec("b", 2, &[what]).await.unwrap();
    }
    bed.set_policy("b", Some(closed())).await;
    until(async || lengths_of(bed, "b", 2).await[0] > 0).await;
    bed.stop_pod("b").await;
}

fn closed() -> PodPolicy {
    PodPolicy::closed()
}

fn open() -> PodPolicy {
    PodPolicy::default()
}

async fn listening(bed: &Bed) {
    let mut events = bed.run("a").await;
    bed.start("a", 1, &mut events).await;
    bed.exec("a", 1, &["listen"]).await.unwrap();
}

#[tokio::test]
async fn listeners_have_filters_as_policies_are() {
    let bed = Bed::new().await;
    listening(&bed).await;
    bed.set_policy("a", Some(closed())).await;
    wait_for(&bed, |all| all[0] > 0).await;
    let closed_length = lengths(&bed).await[0];
    // One that comes now has it too, and one that is let in makes it longer.
    bed.exec("a", 1, &["listen"]).await.unwrap();
    wait_for(&bed, |all| all == [closed_length; 2]).await;
    let node = vec!["192.0.2.1".parse().unwrap()];
    bed.set_policy("a", Some(PodPolicy { node, ..PodPolicy::closed() })).await;
    wait_for(&bed, |all| all.iter().all(|length| *length > closed_length)).await;
    // What is not known now stays as it was.
    bed.set_policy("a", None).await;
    bed.exec("a", 1, &["listen"]).await.unwrap();
    wait_for(&bed, |all| all.len() == 3 && all[2] == all[0]).await;
    bed.set_policy("a", Some(open())).await;
    wait_for(&bed, |all| all == [0; 3]).await;
    bed.stop_pod("a").await;
    bed.finish().await;
}

#[tokio::test]
async fn filters_outlive_the_agent_and_the_next_one_renews_them() {
    let bed = Bed::new().await;
    listening(&bed).await;
    bed.set_policy("a", Some(closed())).await;
    wait_for(&bed, |all| all[0] > 0).await;
    let (bed, _) = bed.agent_leaves().await.agent_returns().await;
    assert!(lengths(&bed).await[0] > 0, "it stays");
    // Not known yet: one that comes now has none.
    bed.set_policy("a", None).await;
    bed.exec("a", 1, &["listen"]).await.unwrap();
    another_is_filtered(&bed).await;
    assert_eq!(lengths(&bed).await[1], 0);
    bed.set_policy("a", Some(closed())).await;
    wait_for(&bed, |all| all[1] == all[0] && all[0] > 0).await;
    // An agent without policies takes them away.
    let (bed, _) = bed.agent_leaves().await.agent_returns().await;
    bed.set_policy("a", Some(open())).await;
    wait_for(&bed, |all| all == [0; 2]).await;
    bed.stop_pod("a").await;
    bed.finish().await;
}

#[tokio::test]
async fn listeners_of_a_lost_connection_are_filtered_when_it_is_there_again() {
    let bed = Bed::new().await;
    listening(&bed).await;
    bed.set_policy("a", Some(closed())).await;
    wait_for(&bed, |all| all[0] > 0).await;
    bed.exec("a", 1, &["listen-and-leave"]).await.unwrap_err();
    wait_for(&bed, |all| all.len() == 2 && all[1] == all[0]).await;
    bed.stop_pod("a").await;
    bed.finish().await;
}

#[tokio::test]
async fn a_look_that_failed_is_made_again() {
    let bed = Bed::new().await;
    listening(&bed).await;
    bed.set_policy("a", Some(closed())).await;
    wait_for(&bed, |all| all[0] > 0).await;
    // Its filter would keep out whom the next policies let in.
    bed.exec("a", 1, &["refuse-to-lend"]).await.unwrap();
    bed.set_policy("a", Some(open())).await;
    wait_for(&bed, |all| all == [0]).await;
    bed.stop_pod("a").await;
    bed.finish().await;
}

#[tokio::test]
async fn an_older_sandbox_goes_on_by_its_own_check() {
    let bed = Bed::new().await;
    let mut events = bed.run("a").await;
    bed.start("a", 1, &mut events).await;
    for what in ["lend-nothing", "listen"] {
        bed.exec("a", 1, &[what]).await.unwrap();
    }
    until(async || asks(&bed).await > 0).await;
    bed.set_policy("a", Some(closed())).await;
    bed.exec("a", 1, &["listen"]).await.unwrap();
    another_is_filtered(&bed).await;
    assert_eq!(asks(&bed).await, 1);
    assert_eq!(lengths(&bed).await, [0; 2]);
    bed.stop_pod("a").await;
    bed.finish().await;
}

#[tokio::test]
async fn policies_too_long_for_a_filter_leave_none_of_other_policies() {
    let bed = Bed::new().await;
    listening(&bed).await;
    bed.set_policy("a", Some(closed())).await;
    wait_for(&bed, |all| all[0] > 0).await;
    let one = |number: u32| {
        let address = std::net::Ipv4Addr::from_bits(2 * number).into();
        krustlet_model::policy::AddressRange::one(address)
    };
    let rule = PolicyRule { peers: Some((0..3000).map(one).collect()), ports: None };
    let ingress = Some(vec![rule]);
    bed.set_policy("a", Some(PodPolicy { ingress, ..PodPolicy::closed() })).await;
    wait_for(&bed, |all| all == [0]).await;
    bed.stop_pod("a").await;
    bed.finish().await;
}
