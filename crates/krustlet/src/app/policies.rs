//! From what is known of the cluster's policies to what the pods' tasks go by.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Node;
use krustlet_cluster::{
    About, EventType, Events,
    policies::{PolicyFacts, Seen},
};
use krustlet_model::policy::{Book, Policies};
use tokio::{
    sync::watch,
    task::{JoinError, spawn_blocking},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

/// The reason of the event by which a node says that it may not know policies,
/// or whom they name.
const FORBIDDEN: &str = "NetworkPoliciesForbidden";

/// How long changes are gathered at least.
const SETTLE: Duration = Duration::from_millis(100);

/// And at most: whoever makes them costly may not hold up others' for longer.
const MOST_SETTLE: Duration = Duration::from_secs(2);

/// So many times what the last look took passes until the next.
const REST: u32 = 4;

/// How long changes are gathered after a look that took so long.
fn settle(took: Duration) -> Duration {
    took.saturating_mul(REST).clamp(SETTLE, MOST_SETTLE)
}

/// Puts the facts together, and tells the Node's readers when some may not be
/// known.
#[derive(Debug)]
pub(super) struct PoliciesTask {
    assembly: Assembly,
    node: watch::Receiver<Option<Arc<Node>>>,
    events: Events,
}

/// What the cluster's policies say.
pub(super) fn policies(
    facts: PolicyFacts,
    node: watch::Receiver<Option<Arc<Node>>>,
    events: Events,
) -> (watch::Receiver<Policies>, PoliciesTask) {
    let (policies, assembly) = assembly(facts);
    (policies, PoliciesTask { assembly, node, events })
}

/// The facts, and what they come to.
#[derive(Debug)]
struct Assembly {
    facts: PolicyFacts,
    shown: watch::Sender<Policies>,
}

fn assembly(facts: PolicyFacts) -> (watch::Receiver<Policies>, Assembly) {
    let why = "the cluster's network policies have not been read yet".to_owned();
    let (shown, policies) = watch::channel(Policies::Unknown(why));
    (policies, Assembly { facts, shown })
}

impl PoliciesTask {
    /// Puts together until stopped.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut told = BTreeSet::new();
        let mut is_news = true;
        let mut took = Duration::ZERO;
        loop {
            if std::mem::take(&mut is_news) {
                let begun = Instant::now();
                if let Err(error) = self.assembly.show().await {
                    // It panicked; the agent ends in order.
                    tracing::error!(%error, "network policies cannot be worked out");
                    return;
                }
                took = begun.elapsed();
            }
            let node = self.node.borrow_and_update().clone();
            if let (Some(node), Some(why)) = (node, self.assembly.forbidden())
                && told.insert(why.clone())
            {
                tracing::error!("{why}");
                self.events.record(&About::node(&node), EventType::Warning, FORBIDDEN, why);
            }
            tokio::select! {
                biased;
                // All are cancel-safe. No sender ends before this task.
                () = stop.cancelled() => return,
                Ok(()) = self.assembly.facts.policies.changed() => is_news = true,
                Ok(()) = self.assembly.facts.namespaces.changed() => is_news = true,
                Ok(()) = self.assembly.facts.pods.changed() => is_news = true,
                Ok(()) = self.node.changed(), if told.is_empty() => {}
                else => return stop.cancelled().await,
            }
            if is_news && !self.assembly.is_waited_for() {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    () = sleep(settle(took)) => {}
                }
            }
        }
    }
}

impl Assembly {
    /// Whether pods wait for what can be shown now: as soon as all is known.
    fn is_waited_for(&self) -> bool {
        let PolicyFacts { policies, namespaces, pods } = &self.facts;
        let is_shown = matches!(*self.shown.borrow(), Policies::Known(_));
        let is_known = policies.borrow().known.is_some()
            && namespaces.borrow().known.is_some()
            && pods.borrow().known.is_some();
        !is_shown && is_known && self.forbidden().is_none()
    }

    /// Shows what is known. What it comes to is worked out where nobody else is
    /// held up.
    async fn show(&mut self) -> Result<(), JoinError> {
        let policies = self.facts.policies.borrow_and_update().known.clone();
        let namespaces = self.facts.namespaces.borrow_and_update().known.clone();
        let pods = self.facts.pods.borrow_and_update().known.clone();
        let (Some(policies), Some(namespaces), Some(pods)) = (policies, namespaces, pods) else {
            if let Some(why) = self.forbidden() {
                self.show_unknown(why);
            }
            return Ok(());
        };
        // What was known goes out of date: it holds for those who were told, and
        // nobody is told anew.
        if let Some(why) = self.forbidden() {
            self.show_unknown(why);
            return Ok(());
        }
        let shown = self.shown.borrow().clone();
        let (next, differs) = spawn_blocking(move || {
            let mut next = Book::new(&policies, namespaces, pods);
            let differs = match shown {
                Policies::Known(before) => next.follow(&before),
                Policies::Off | Policies::Unknown(_) => true,
            };
            (Arc::new(next), differs)
        })
        .await?;
        tracing::debug!(steps = next.steps(), differs, "network policies were looked at");
        self.shown.send_if_modified(|shown| {
            let is_other = match shown {
                // Whoever asked meanwhile asked the book before.
                Policies::Known(before) => differs || !next.covers(before),
                Policies::Off | Policies::Unknown(_) => true,
            };
            *shown = Policies::Known(next);
            is_other
        });
        Ok(())
    }

    /// Tells nobody twice.
    fn show_unknown(&self, why: String) {
        self.shown.send_if_modified(|shown| {
            let is_same = matches!(&*shown, Policies::Unknown(old) if *old == why);
            *shown = Policies::Unknown(why);
            !is_same
        });
    }

    /// What may not be known, if anything.
    fn forbidden(&self) -> Option<String> {
        let PolicyFacts { policies, namespaces, pods } = &self.facts;
        let why = why(policies).or_else(|| why(namespaces)).or_else(|| why(pods))?;
        Some(format!(
            "Network policies cannot be enforced: {why}; apply deploy/network-rbac.yaml, or leave \
             --network-policy (networkPolicy) out"
        ))
    }
}

fn why<T>(seen: &watch::Receiver<Seen<T>>) -> Option<String> {
    seen.borrow().forbidden.clone()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::core::v1::Pod;
    use krustlet_cluster::{
        ConnectOptions, EventRate, connect::connect, events::events as events_of,
        policies::PolicySpecs,
    };
    use krustlet_model::policy::{AddressRange, Labels, PeerPod, Verdict};
    use serde_json::json;
    use tokio::time::{Instant, timeout};

    use super::*;

    fn known<T>(all: T) -> Seen<T> {
        Seen { known: Some(Arc::new(all)), forbidden: None }
    }

    fn peer(app: &str, last: u8) -> Arc<PeerPod> {
        Arc::new(PeerPod {
            namespace: "n".to_owned(),
            labels: Labels::from([("app".to_owned(), app.to_owned())]),
            addresses: vec![[10, 0, 0, last].into()],
            ports: Vec::new(),
        })
    }

    /// Takes events that nobody sends.
    async fn events() -> Events {
        let file = tempfile::NamedTempFile::new().unwrap();
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
            "users": [{"name": "u", "user": {}}],
        });
        std::fs::write(file.path(), config.to_string()).unwrap();
        let options = ConnectOptions { user_agent: "test".to_owned(), context: None };
        let cluster = connect(file.path(), options).await.unwrap();
        events_of(&cluster, "here", EventRate::default()).0
    }

    /// Lets only friends come to the web.
    fn specs_of_web() -> PolicySpecs {
        let spec = json!({
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}]}],
        });
        let spec = Arc::new(serde_json::from_value(spec).unwrap());
        [(("n".to_owned(), "p".to_owned()), spec)].into()
    }

    /// What is shown of the web, which goes by it as long as it holds that.
    fn web(shown: &mut watch::Receiver<Policies>) -> Arc<Verdict> {
        let web = json!({"metadata": {"namespace": "n", "labels": {"app": "web"}}});
        let web: Pod = serde_json::from_value(web).unwrap();
        let book = match &*shown.borrow_and_update() {
            Policies::Known(book) => Arc::clone(book),
            other => panic!("{other:?}"),
        };
        book.of(&web)
    }

    /// Who may come to it.
    fn guests(web: &Verdict) -> Vec<AddressRange> {
        web.policy.ingress.as_ref().unwrap()[0].peers.clone().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn changes_that_follow_each_other_are_gathered() {
        let (_policies, specs) = watch::channel(known(specs_of_web()));
        let (_namespaces, labels) = watch::channel(known(BTreeMap::new()));
        let (pods, peers) = watch::channel(known(BTreeMap::new()));
        let facts = PolicyFacts { policies: specs, namespaces: labels, pods: peers };
        let (_node, node) = watch::channel(None);
        let (mut shown, task) = policies(facts, node, events().await);
        let stop = CancellationToken::new();
        let work = async {
            let begun = Instant::now();
            shown.changed().await.unwrap();
            assert_eq!(begun.elapsed(), Duration::ZERO, "pods wait for the first");
            let alone = web(&mut shown);
            assert!(guests(&alone).is_empty());
            let begun = Instant::now();
            let mut all = BTreeMap::new();
            for last in 1..=5 {
                all.insert(("n".to_owned(), last.to_string()), peer("friend", last));
                pods.send_replace(known(all.clone()));
                sleep(SETTLE / 10).await;
                assert!(!shown.has_changed().unwrap(), "more may follow");
            }
            shown.changed().await.unwrap();
            assert!((SETTLE..SETTLE * 2).contains(&begun.elapsed()), "{:?}", begun.elapsed());
            let guests = guests(&web(&mut shown));
            for last in 1..=5 {
                let friend = [10, 0, 0, last].into();
                assert!(guests.iter().any(|range| range.contains(friend)), "{friend}");
            }
            stop.cancel();
        };
        let both = async { tokio::join!(task.run(stop.clone()), work) };
        timeout(Duration::from_mins(1), both).await.expect("it ends");
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_gathered_too_while_something_may_not_be_known() {
        let forbidden = |why: &str| Seen { known: None, forbidden: Some(why.to_owned()) };
        let (policies_of, specs) = watch::channel(forbidden("one"));
        let (_namespaces, labels) = watch::channel(known(BTreeMap::new()));
        let (_pods, peers) = watch::channel(known(BTreeMap::new()));
        let facts = PolicyFacts { policies: specs, namespaces: labels, pods: peers };
        let (_node, node) = watch::channel(None);
        let (mut shown, task) = policies(facts, node, events().await);
        let stop = CancellationToken::new();
        let work = async {
            shown.changed().await.unwrap();
            let begun = Instant::now();
            policies_of.send_replace(forbidden("two"));
            shown.changed().await.unwrap();
            assert!((SETTLE..SETTLE * 2).contains(&begun.elapsed()), "{:?}", begun.elapsed());
            assert!(matches!(&*shown.borrow(), Policies::Unknown(why) if why.contains("two")));
            let begun = Instant::now();
            policies_of.send_replace(known(specs_of_web()));
            shown.changed().await.unwrap();
            assert_eq!(begun.elapsed(), Duration::ZERO, "pods wait for them");
            stop.cancel();
        };
        let both = async { tokio::join!(task.run(stop.clone()), work) };
        timeout(Duration::from_mins(1), both).await.expect("it ends");
    }

    #[test]
    fn what_costs_more_is_looked_at_less_often() {
        let ms = Duration::from_millis;
        let after = [0, 10, 100, 10_000].map(|took| settle(ms(took)));
        assert_eq!(after, [SETTLE, SETTLE, ms(400), MOST_SETTLE]);
        assert_eq!(settle(Duration::MAX), MOST_SETTLE);
    }

    #[tokio::test]
    async fn nobody_is_woken_for_what_no_policy_names() {
        let (policies, all_specs) = watch::channel(Seen::default());
        let (namespaces, labels) = watch::channel(known(BTreeMap::new()));
        let (pods, peers) = watch::channel(known(BTreeMap::new()));
        let facts = PolicyFacts { policies: all_specs, namespaces: labels, pods: peers };
        let (mut shown, mut assembly) = assembly(facts);
        assembly.show().await.unwrap();
        assert!(matches!(&*shown.borrow_and_update(), Policies::Unknown(_)));

        let forbidden = Some("no".to_owned());
        policies.send_replace(Seen { known: None, forbidden });
        assembly.show().await.unwrap();
        assert!(shown.has_changed().unwrap());
        let why = match &*shown.borrow_and_update() {
            Policies::Unknown(why) => why.clone(),
            other => panic!("{other:?}"),
        };
        assert!(why.contains("no; apply deploy/network-rbac.yaml"), "{why}");

        policies.send_replace(known(specs_of_web()));
        assembly.show().await.unwrap();
        assert!(shown.has_changed().unwrap());
        let alone = web(&mut shown);
        assert!(guests(&alone).is_empty());
        let mut all = BTreeMap::from([(("n".to_owned(), "a".to_owned()), peer("other", 1))]);
        pods.send_replace(known(all.clone()));
        assembly.show().await.unwrap();
        assert!(!shown.has_changed().unwrap());
        all.insert(("n".to_owned(), "b".to_owned()), peer("friend", 2));
        pods.send_replace(known(all));
        assembly.show().await.unwrap();
        assert!(shown.has_changed().unwrap());
        let web = web(&mut shown);
        assert_eq!(guests(&web).len(), 1);
        drop(web);
        pods.send_replace(known(BTreeMap::new()));
        assembly.show().await.unwrap();
        assert!(!shown.has_changed().unwrap(), "nobody goes by it any more");

        // A right that is lost: what was known is no more said of new pods.
        pods.send_modify(|seen| seen.forbidden = Some("no more".to_owned()));
        assembly.show().await.unwrap();
        assert!(matches!(&*shown.borrow_and_update(), Policies::Unknown(_)));
        drop(namespaces);
    }
}
