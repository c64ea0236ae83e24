//! Which pods share a process.

use krustlet_model::PodUid;
use krustlet_protocol::PodNetwork;
use krustlet_runtime::{Domain, NetworkKind, PodSandbox, PodUser, RuntimeError};

use crate::bed::{Bed, death, exit_code, kill_sandbox, next};

fn shared() -> Domain {
    Domain::Namespace("n".into())
}

#[tokio::test]
async fn pods_of_a_domain_share_a_process_until_the_last_has_left() {
    let bed = Bed::new().await;
    // At once, so that the second finds the process starting.
    let (a, b) = tokio::join!(bed.run_in("a", shared()), bed.run_in("b", shared()));
    let (mut a, mut b) = (a.unwrap(), b.unwrap());
    let mut other = bed.run_in("c", Domain::Namespace("m".into())).await.unwrap();
    bed.start("a", 1, &mut a).await;
    bed.start("b", 2, &mut b).await;
    bed.start("c", 3, &mut other).await;
    let first = bed.pid("a", 1).await;
    assert_eq!(bed.pid("b", 2).await, first);
    assert_ne!(bed.pid("c", 3).await, first);

    bed.stop_pod("a").await;
    assert_eq!(next(&mut a).await, None);
    assert_eq!(bed.pid("b", 2).await, first, "the other pod stays");
    bed.exec("b", 2, &["exit", "3"]).await.unwrap();
    assert_eq!(exit_code(&mut b, 2).await, 3);

    bed.stop_pod("b").await;
    let mut again = bed.run_in("a", shared()).await.unwrap();
    bed.start("a", 1, &mut again).await;
    assert_ne!(bed.pid("a", 1).await, first);
    bed.stop_pod("a").await;
    bed.stop_pod("c").await;
    bed.finish().await;
}

#[tokio::test]
async fn each_process_is_asked_once_what_its_pods_use() {
    let bed = Bed::new().await;
    let pods = [("a", shared()), ("b", shared()), ("c", Domain::Pod)];
    let mut all_events = Vec::new();
    for (digit, (pod, domain)) in (1..).zip(pods) {
        let mut events = bed.run_in(pod, domain).await.unwrap();
        bed.start(pod, digit, &mut events).await;
        all_events.push(events);
    }
    let stats = bed.runtime.stats().await.unwrap();
    assert_eq!(stats.len(), 3);
    for (pod, reports) in stats {
        // The stand-in says how often it was asked.
        assert_eq!((reports.len(), reports[0].cpu_ns), (1, 1), "{reports:?}");
        assert_eq!(reports[0].pod, pod);
        bed.stop_pod(pod.as_str()).await;
    }
    bed.finish().await;
}

#[tokio::test]
async fn pods_with_different_users_never_share() {
    let bed = Bed::new().await;
    let mut pids = Vec::new();
    for (digit, uid) in [(1, 1001), (2, 1002)] {
        let pod = format!("p{digit}");
        let user = PodUser { uid, gid: uid, groups: vec![] };
        let sandbox = PodSandbox {
            pod: PodUid::new(pod.clone()),
            domain: shared(),
            user,
            kind: NetworkKind::Node,
            network: PodNetwork::default(),
        };
        let mut events = bed.runtime.run_pod_sandbox(sandbox).await.unwrap();
        bed.start(&pod, digit, &mut events).await;
        pids.push(bed.pid(&pod, digit).await);
    }
    assert_ne!(pids[0], pids[1]);
    bed.stop_pod("p1").await;
    bed.stop_pod("p2").await;
    bed.finish().await;
}

#[tokio::test]
async fn every_pod_of_a_process_hears_of_its_death_and_they_meet_in_the_next() {
    let bed = Bed::new().await;
    let mut a = bed.run_in("a", shared()).await.unwrap();
    let mut b = bed.run_in("b", shared()).await.unwrap();
    bed.start("a", 1, &mut a).await;
    kill_sandbox(bed.home.path()).await;
    assert_eq!(death(&mut a).await, 137);
    assert_eq!(death(&mut b).await, 137);

    let mut a = bed.run_in("a", shared()).await.unwrap();
    let mut b = bed.run_in("b", shared()).await.unwrap();
    bed.start("a", 2, &mut a).await;
    bed.start("b", 3, &mut b).await;
    assert_eq!(bed.pid("a", 2).await, bed.pid("b", 3).await);
    bed.stop_pod("a").await;
    bed.stop_pod("b").await;
    assert!(bed.sandboxes().is_empty(), "the dead one is forgotten too");
    bed.finish().await;
}

#[tokio::test]
async fn a_pod_has_one_sandbox_at_a_time() {
    let bed = Bed::new().await;
    let _events = bed.run("a").await;
    let error = bed.run_in("a", Domain::Pod).await.unwrap_err();
    assert!(matches!(error, RuntimeError::HasSandbox { .. }), "{error}");
    bed.stop_pod("a").await;
    bed.finish().await;
}

#[tokio::test]
async fn a_pod_stopped_while_it_starts_has_no_sandbox_afterwards() {
    let bed = Bed::new().await;
    for round in 0..10 {
        let pod = format!("p{round}");
        let (_started, ()) = tokio::join!(bed.run_in(&pod, Domain::Pod), bed.stop_pod(&pod));
        // Whichever was first, a stop that comes after both finds it gone.
        bed.stop_pod(&pod).await;
        assert!(bed.sandboxes().is_empty());
    }
    bed.finish().await;
}

#[tokio::test]
async fn a_uid_that_would_leave_the_directory_is_refused() {
    let bed = Bed::new().await;
    let error = bed.run_in("../a", Domain::Pod).await.unwrap_err();
    assert!(matches!(error, RuntimeError::InvalidPod { .. }), "{error}");
    bed.finish().await;
}
