//! Keeping what a living sandbox lets the pod's sockets do as the network has it
//! now.
//!
//! ```text
//! made with the newest rules ──▶ Current ──▶ Due ──▶ Telling ──▶ Current
//!                                             ▲ ▲         │
//! taken over from an earlier agent ───────────┘ └─────────┘
//!                                                failed, or old by then
//! ```
//!
//! One telling at a time: of two that are under way the older may arrive last.
//!
//! What an earlier agent said may be out of date: the node's addresses and the
//! port of its API may be others now. No guest is entered before its sandbox
//! was told.
//!
//! Policies that are not known yet are not waited for by a sandbox that lives: it
//! is told the rest, and goes on by those that it was told last. So it is with names
//! that the node's files do not tell an agent that comes anew. What this agent told
//! holds as long as the sandbox, whatever becomes of these files.
//!
//! What policies come to takes a while to work out, as long as those want who write
//! them: it is done elsewhere, and the pod waits for it.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::api::core::v1::Pod;
use krustlet_model::policy::{Book, Verdict};
use krustlet_protocol::Names;
use tokio::{task::spawn_blocking, time::Instant};

use super::{Done, Sandbox, Worker, key_of, observe::later, start::read_names};
use crate::{
    config::Context,
    guard::{self, Guard, Looked, Trouble},
    names,
    outside::{EventType, Refused, Why},
    place, words,
};

/// Whether the sandbox goes by the newest rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rules {
    /// It does, or there is none; one that is made is given them.
    Current,
    /// It is to be told, from this moment on, after so many failures in a row.
    Due { from: Instant, failures: u32 },
    /// It is being told, after so many failures in a row; once more afterwards if
    /// what it is told is old by then.
    Telling { failures: u32, is_old: bool },
}

impl Rules {
    /// When the next try may begin.
    pub(super) fn wake(self) -> Option<Instant> {
        match self {
            Self::Due { from, .. } => Some(from),
            Self::Current | Self::Telling { .. } => None,
        }
    }

    /// What is to be told has changed.
    fn grow_old(&mut self) {
        match self {
            Self::Telling { is_old, .. } => *is_old = true,
            Self::Current | Self::Due { .. } => {
                *self = Self::Due { from: Instant::now(), failures: 0 };
            }
        }
    }

    /// Another sandbox is made with the newest. What is under way for the one
    /// before may reach it.
    pub(super) fn made(&mut self) {
        match self {
            Self::Telling { is_old, .. } => *is_old = true,
            Self::Current | Self::Due { .. } => *self = Self::Current,
        }
    }
}

/// How a pod looks names up whose sandbox an earlier agent made. People heard of what
/// is odd about that then. None if the node's files do not tell now.
async fn names_of_living(
    context: Arc<Context>,
    pod: Arc<Pod>,
    addresses: Vec<IpAddr>,
) -> Option<Names> {
    let key = key_of(&pod);
    match read_names(context, pod, addresses, names::of_living_pod).await {
        Ok(names) => names,
        Err(refused) => {
            tracing::warn!(pod = %key, %refused, "the names of a pod stay as they were");
            None
        }
    }
}

impl Worker {
    /// Takes the bounds of the pod's sockets from its annotations. Ones that make
    /// no sense change nothing: a pod is not taken with such, but can be given
    /// them while it runs.
    pub(super) fn take_limits(&mut self) {
        match place::limits(&self.pod, &self.context.config.sockets) {
            Ok(limits) if limits == self.limits => {}
            Ok(limits) => {
                self.limits = limits;
                self.rules_are_old();
            }
            Err(error) => {
                let message = format!("the bounds of the pod's sockets stay: {error}");
                self.tell(EventType::Warning, words::INVALID_NETWORK_ANNOTATION, message);
            }
        }
    }

    /// The rules are not those that the sandbox was told, or may not be.
    pub(super) fn rules_are_old(&mut self) {
        match self.sandbox {
            Sandbox::Up | Sandbox::Making => self.rules.grow_old(),
            Sandbox::None { .. } | Sandbox::Stopping | Sandbox::Stuck { .. } | Sandbox::Stopped => {
            }
        }
    }

    /// Policies, labels or the pod's own list may be others now.
    pub(super) fn look_at_guard(&mut self) {
        // Else it is looked at again when it is worked out.
        let Some((guard, trouble)) = self.guard_now() else { return };
        // Who waits is told when it is to be started.
        if matches!(self.sandbox, Sandbox::Up | Sandbox::Making) {
            self.tell_trouble(trouble.filter(|trouble| !matches!(trouble, Trouble::Unknown(_))));
        }
        if guard != self.guard {
            self.rules_are_old();
        }
    }

    /// Whether all is known that a sandbox has to be told. Otherwise it is clear
    /// what the pod waits for.
    pub(super) fn is_guarded(&mut self) -> bool {
        let Some((_, trouble)) = self.guard_now() else { return false };
        let is_guarded = trouble.is_none();
        self.tell_trouble(trouble);
        is_guarded
    }

    /// What holds now. None while it is worked out what the policies say: all is
    /// looked at again afterwards.
    fn guard_now(&mut self) -> Option<(Guard, Option<Trouble>)> {
        // Whoever shows other policies waits as long as these are borrowed.
        let policies = self.policies.borrow().clone();
        match guard::look(&self.context.outside.network, &policies, &self.pod) {
            Looked::Known { guard, trouble, verdict } => {
                self.verdict = verdict;
                Some((guard, trouble))
            }
            Looked::ToWorkOut(book) => {
                self.work_out(book);
                None
            }
        }
    }

    /// Has worked out what policies say of the pod, once at a time. It may be out
    /// of date by then, for the pod or for the policies: it is looked at again.
    fn work_out(&mut self, book: Arc<Book>) {
        if std::mem::replace(&mut self.works_out, true) {
            return;
        }
        let (context, pod) = (Arc::clone(&self.context), Arc::clone(&self.pod));
        self.jobs.spawn(async move {
            // Never closed, so that there is always one in the end.
            let _alone = context.policy_looks.acquire().await.ok();
            match spawn_blocking(move || book.of(&pod)).await {
                Ok(verdict) => Done::WorkedOut(Some(verdict)),
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                // The agent stops.
                Err(_) => Done::WorkedOut(None),
            }
        });
    }

    /// Something is known that was worked out.
    pub(super) fn worked_out(&mut self, verdict: Option<Arc<Verdict>>) {
        self.works_out = false;
        if verdict.is_some() {
            // The policies that follow these know it too, as long as it is held.
            self.verdict = verdict;
            self.look_at_guard();
        }
    }

    /// Once for each.
    fn tell_trouble(&mut self, trouble: Option<Trouble>) {
        if self.trouble == trouble {
            return;
        }
        self.trouble = trouble;
        let Some(trouble) = &self.trouble else { return };
        let reason = match trouble {
            Trouble::Unknown(_) => words::NETWORK_NOT_READY,
            Trouble::TooLarge(_) => words::POLICY_TOO_LARGE,
            Trouble::List(_) => words::INVALID_NETWORK_ANNOTATION,
        };
        self.tell(EventType::Warning, reason, trouble.text());
    }

    /// Takes the newest of everything that a sandbox is told. Whether it is known.
    pub(super) fn newest_guard(&mut self) -> bool {
        // What changes from now on is told after this.
        self.reached_at.borrow_and_update();
        self.policies.borrow_and_update();
        let Some((guard, _)) = self.guard_now() else { return false };
        self.guard = guard;
        true
    }

    /// Tells the sandbox, if that is due.
    pub(super) fn tell_rules(&mut self, now: Instant) {
        let (Sandbox::Up, Rules::Due { from, failures }) = (self.sandbox, self.rules) else {
            return;
        };
        if self.place.is_none() {
            // Left by an agent that kept none: there is nothing to be said.
            self.rules = Rules::Current;
            self.enter_saved();
            return;
        }
        if from > now {
            return;
        }
        // Else it is told when that is worked out.
        if !self.newest_guard() {
            return;
        }
        let Some(place) = &self.place else { return };
        let mut network = place::rules(
            &self.context.outside.network,
            &self.pod,
            place,
            &self.limits,
            &self.guard,
        );
        self.rules = Rules::Telling { failures, is_old: false };
        let (context, pod) = (Arc::clone(&self.context), Arc::clone(&self.pod));
        let (uid, known) = (self.uid.clone(), self.names.clone());
        self.jobs.spawn(async move {
            network.names = match known {
                Some(names) => Some(names),
                None => names_of_living(Arc::clone(&context), pod, network.addresses.clone()).await,
            };
            let names = network.names.clone();
            let told = context.outside.runtime.set_pod_network(uid, network).await;
            Done::Rules(told.map(|()| names))
        });
    }

    pub(super) fn rules_were_told(&mut self, result: Result<Option<Names>, Refused>) {
        let Rules::Telling { failures, is_old } = self.rules else { return };
        self.rules = Rules::Current;
        // Those of a sandbox that was made meanwhile are known already.
        let result = result.map(|told| self.names = self.names.take().or(told));
        let refused = match result {
            // What came of it says nothing of what is to be told now, and of
            // another sandbox nothing at all.
            Ok(()) | Err(Refused { why: Why::Died | Why::Failed, .. }) if is_old => {
                return self.rules_are_old();
            }
            Ok(()) => return self.enter_saved(),
            Err(refused) => refused,
        };
        let failures = failures.saturating_add(1);
        let from = match refused.why {
            Why::Stopping => later(),
            // An event says so, and another sandbox is made with the newest.
            Why::Died => Self::retry(failures),
            Why::Failed => {
                if failures == 1 {
                    tracing::warn!(
                        pod = %self.key, %refused,
                        "cannot tell a sandbox what its sockets may do; it goes by what it was told"
                    );
                }
                Self::retry(failures)
            }
        };
        self.rules = Rules::Due { from, failures };
    }
}
