//! Keeps those whom policies do not let in from what pods listen on.
//!
//! ```text
//! the pod's network is set ─┐
//! a guest listens ──────────┼──▶ due ──▶ the sandbox lends its listeners ──▶ program ──▶ attached
//! a connection is there again ┘
//! ```
//!
//! A sandbox refuses whom policies do not let in, but only what the system has
//! taken already: the client has seen his connection open. So the agent, which has
//! the right to, gives each listener a packet filter. It is an addition: where the
//! system takes none, where policies come to too much for one, and in the moments
//! before it is there, the sandbox's own check is all there is, and it is made in any
//! case.
//!
//! Filters stay when the agent ends. The next one renews those of pods whose policies
//! it knows.

mod attach;
mod program;

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use krustlet_model::{Chain, PodUid};
use krustlet_protocol::{
    DescriptorName, Failure, MAX_LISTENERS, PodNetwork, SandboxReply, SandboxRequest,
    connection::Answer,
};
use tokio::sync::{Notify, Semaphore};

pub use self::attach::FilterError;
pub(crate) use self::program::Guard;
use self::{attach::keep_out, program::Programs};
use crate::{RuntimeError, sandbox::Sandbox, work::blocking};

/// Between two looks at one sandbox, beside twice the time that the last one took: a
/// guest that listens without end takes a third of a processor at most.
const PAUSE: Duration = Duration::from_millis(20);

/// The least after one that failed: what is wanting, descriptors or time, is so for a
/// while.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Time for a sandbox to lend, for which it waits for nothing: one that says nothing
/// does not hold up others for long.
const LEND_LIMIT: Duration = Duration::from_secs(2);

/// How many pods of an agent are looked at at once: what all of them listen on together
/// takes no more processors, and no more times [`MAX_LISTENERS`] descriptors.
const PLACES: usize = 2;

/// What the looks at all sandboxes of an agent have in common.
#[derive(Debug)]
pub(crate) struct Looks {
    /// First come, first served.
    pub(crate) places: Semaphore,
    /// Whether it was said that listeners cannot be filtered.
    is_said: AtomicBool,
}

impl Default for Looks {
    fn default() -> Self {
        Self { places: Semaphore::new(PLACES), is_said: AtomicBool::new(false) }
    }
}

impl Looks {
    /// Whether people are to hear of an error: of the system's, once. Others are one
    /// sandbox's own, which may lend what it likes.
    fn is_news(&self, error: &FilterError) -> bool {
        match error {
            FilterError::Refused { .. } => !self.is_said.swap(true, Ordering::Relaxed),
            FilterError::NotAListener | FilterError::Unknown(_) => false,
        }
    }
}

/// The pods of one sandbox, as their listeners are to be filtered.
#[derive(Debug, Default)]
pub(crate) struct Filters {
    /// Never held across an await.
    pods: Mutex<HashMap<PodUid, Filtered>>,
    /// There is something to do.
    due: Notify,
    /// Whether the sandbox does not know how to lend.
    is_old: AtomicBool,
    /// Whether it was said that it does not lend what it should.
    has_failed: AtomicBool,
}

#[derive(Debug)]
struct Filtered {
    guard: Arc<Guard>,
    is_due: bool,
}

impl Filters {
    fn pods(&self) -> MutexGuard<'_, HashMap<PodUid, Filtered>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod comes whose network the sandbox was just told: it listens to nothing yet.
    pub(crate) fn enter(&self, pod: &PodUid, guard: Option<Guard>) {
        if let Some(guard) = guard {
            let entered = Filtered { guard: Arc::new(guard), is_due: false };
            self.pods().insert(pod.clone(), entered);
        }
    }

    /// The sandbox was told a pod's network. What is not known of it now is as it was.
    pub(crate) fn set(&self, pod: &PodUid, guard: Option<Guard>) {
        let Some(guard) = guard else { return };
        let mut pods = self.pods();
        if pods.get(pod).is_some_and(|filtered| *filtered.guard == guard) {
            return;
        }
        pods.insert(pod.clone(), Filtered { guard: Arc::new(guard), is_due: true });
        self.due.notify_one();
    }

    /// A pod listens anew, as its sandbox says.
    pub(crate) fn listens(&self, pod: &PodUid) {
        if let Some(filtered) = self.pods().get_mut(pod) {
            filtered.is_due = true;
            self.due.notify_one();
        }
    }

    /// The sandbox may have said something that nobody heard.
    pub(crate) fn all_may_listen(&self) {
        for filtered in self.pods().values_mut() {
            filtered.is_due = true;
        }
        self.due.notify_one();
    }

    /// A look at what a pod listens on has failed.
    fn again(&self, pod: &PodUid) {
        self.listens(pod);
    }

    pub(crate) fn remove(&self, pod: &PodUid) {
        self.pods().remove(pod);
    }

    /// Waits until there is something to do. Cancel-safe.
    pub(crate) async fn due(&self) {
        self.due.notified().await;
    }

    fn take_due(&self) -> Vec<(PodUid, Arc<Guard>)> {
        let mut pods = self.pods();
        let take = |(pod, one): (&PodUid, &mut Filtered)| {
            let is_due = std::mem::take(&mut one.is_due);
            is_due.then(|| (pod.clone(), Arc::clone(&one.guard)))
        };
        pods.iter_mut().filter_map(take).collect()
    }
}

/// Filters what the pods of a sandbox listen on of which that is due, and rests for a
/// while. Where that fails it stays due: what is attached there is of other policies,
/// and may keep out whom these let in.
pub(crate) async fn renew(sandbox: &Sandbox) {
    let begun = Instant::now();
    let mut least = Duration::ZERO;
    for (pod, guard) in sandbox.filters.take_due() {
        if sandbox.filters.is_old.load(Ordering::Relaxed) {
            return;
        }
        let Err(error) = filter(sandbox, &pod, guard).await else { continue };
        let may_pass = may_pass(&error);
        if may_pass {
            sandbox.filters.again(&pod);
            least = PAUSE_AFTER_FAILURE;
        }
        let error = Chain(&error);
        if may_pass && !sandbox.filters.has_failed.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                sandbox = sandbox.id, pod = %pod, %error,
                "cannot filter what a pod listens on, and tries again; said once"
            );
        } else {
            tracing::debug!(sandbox = sandbox.id, pod = %pod, %error, "lends no listeners");
        }
    }
    tokio::time::sleep(least.max(PAUSE + 2 * begun.elapsed())).await;
}

/// Whether what failed may do otherwise when it is tried again, without anybody
/// saying so.
fn may_pass(error: &RuntimeError) -> bool {
    let is_final = matches!(
        error,
        RuntimeError::Died
            | RuntimeError::NoSandbox { .. }
            | RuntimeError::Refused(Failure::NotFound { .. } | Failure::UnknownVerb)
    );
    !is_final
}

async fn filter(sandbox: &Sandbox, pod: &PodUid, guard: Arc<Guard>) -> Result<(), RuntimeError> {
    // Nobody closes it.
    let _place = sandbox.common.looks.places.acquire().await;
    let request = SandboxRequest::Listeners { pod: pod.clone() };
    let answer = match sandbox.ask_with_files(request, LEND_LIMIT).await {
        Err(RuntimeError::Refused(Failure::UnknownVerb)) => {
            sandbox.filters.is_old.store(true, Ordering::Relaxed);
            return Ok(());
        }
        answer => answer?,
    };
    let listeners = lent(answer)?;
    let filtered = move || Ok(filter_each(&guard, listeners));
    let failed = blocking(filtered).await.map_err(RuntimeError::Work)?;
    for error in failed {
        let is_news = sandbox.common.looks.is_news(&error);
        let error = Chain(&error);
        if is_news {
            tracing::warn!(
                %error,
                "cannot keep those out of pods' listeners whom policies refuse: they see \
                 their connections open and close; said once"
            );
        } else {
            tracing::debug!(sandbox = sandbox.id, pod = %pod, %error, "a listener has no filter");
        }
    }
    Ok(())
}

/// What a sandbox lends, each with the pod's port; of more than it may, some.
fn lent(answer: Answer<SandboxReply>) -> Result<Vec<(u16, OwnedFd)>, RuntimeError> {
    let Answer { reply, fds } = answer;
    match reply {
        SandboxReply::Listeners { ports }
            if ports.len() == fds.len()
                && fds.iter().all(|(name, _)| *name == DescriptorName::Listener) =>
        {
            let sockets = fds.into_iter().map(|(_, socket)| socket);
            Ok(ports.into_iter().zip(sockets).take(MAX_LISTENERS).collect())
        }
        other => Err(RuntimeError::WrongAnswer { answer: format!("{other:?}") }),
    }
}

/// Filters sockets, each for a port of the pod, and closes them. Gives the errors.
/// Blocks.
fn filter_each(guard: &Guard, listeners: Vec<(u16, OwnedFd)>) -> Vec<FilterError> {
    let mut programs = Programs::of(guard);
    let keep_out = |(port, socket)| keep_out(&mut programs, port, &socket).err();
    listeners.into_iter().filter_map(keep_out).collect()
}

/// Filters what a pod listens on, each socket for a port of the pod, by the policies
/// of its network, and closes the descriptors; does nothing if it is not known what
/// they are.
///
/// # Errors
///
/// One of the reasons why a socket was not filtered; the others are.
pub fn filter_listeners(
    network: &PodNetwork,
    listeners: Vec<(u16, OwnedFd)>,
) -> Result<(), FilterError> {
    let Some(guard) = Guard::of(network) else { return Ok(()) };
    filter_each(&guard, listeners).into_iter().next().map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use krustlet_model::policy::PodPolicy;
    use krustlet_protocol::connection::CallError;

    use super::*;

    fn guard(policy: Option<PodPolicy>) -> Option<Guard> {
        Guard::of(&PodNetwork { policy, ..PodNetwork::default() })
    }

    fn due(filters: &Filters) -> usize {
        filters.take_due().len()
    }

    #[test]
    fn what_is_lent_beside_listeners_or_beyond_the_bound_is_not_taken() {
        let file = || OwnedFd::from(tempfile::tempfile().unwrap());
        let lend = |ports: usize, name, files: usize| {
            let reply = SandboxReply::Listeners { ports: vec![80; ports] };
            let fds = (0..files).map(|_| (name, file())).collect();
            lent(Answer { reply, fds }).map(|lent| lent.len())
        };
        for (ports, name, files) in [
            (1, DescriptorName::Listener, 0),
            (0, DescriptorName::Listener, 1),
            (1, DescriptorName::Control, 1),
        ] {
            let taken = lend(ports, name, files);
            assert!(matches!(taken, Err(RuntimeError::WrongAnswer { .. })), "{taken:?}");
        }
        for (files, taken) in [(0, 0), (2, 2), (MAX_LISTENERS + 1, MAX_LISTENERS)] {
            assert_eq!(lend(files, DescriptorName::Listener, files).unwrap(), taken);
        }
        lent(Answer { reply: SandboxReply::Done, fds: vec![] }).unwrap_err();
    }

    #[test]
    fn what_does_not_mend_itself_is_not_tried_again() {
        let missing = Failure::NotFound { id: "a".into() };
        for error in [RuntimeError::Died, RuntimeError::Refused(missing)] {
            assert!(!may_pass(&error), "{error}");
        }
        let broken = RuntimeError::Work(std::io::Error::other("no thread"));
        let failed = Failure::Failed { message: "no further descriptor".into() };
        let limit = LEND_LIMIT;
        let late = RuntimeError::Call(CallError::TimedOut { limit });
        for error in [broken, RuntimeError::Refused(failed), late] {
            assert!(may_pass(&error), "{error}");
        }
    }

    #[test]
    fn people_hear_once_of_what_the_system_refuses_and_of_nothing_else() {
        let refused = || {
            let source = std::io::Error::from_raw_os_error(libc::ENOMEM);
            FilterError::Refused { steps: 9, source }
        };
        let odd = FilterError::Unknown(std::io::Error::other("odd"));
        let looks = Looks::default();
        let told = [FilterError::NotAListener, odd, refused(), refused()]
            .map(|error| looks.is_news(&error));
        assert_eq!(told, [false, false, true, false]);
    }

    #[test]
    fn each_error_of_a_listener_is_given() {
        let file = || OwnedFd::from(tempfile::tempfile().unwrap());
        let closed = guard(Some(PodPolicy::closed())).unwrap();
        assert_eq!(filter_each(&closed, vec![(80, file()), (81, file())]).len(), 2);
    }

    #[test]
    fn listeners_are_asked_for_when_policies_change_or_there_are_new_ones() {
        let (filters, pod) = (Filters::default(), PodUid::new("a"));
        let open = || guard(Some(PodPolicy::default()));
        let closed = || guard(Some(PodPolicy::closed()));
        filters.enter(&pod, open());
        assert_eq!(due(&filters), 0, "it listens to nothing");
        for (set, is_due) in [(open(), 0), (closed(), 1), (guard(None), 0), (closed(), 0)] {
            filters.set(&pod, set);
            assert_eq!(due(&filters), is_due);
        }
        filters.listens(&pod);
        filters.listens(&PodUid::new("unknown"));
        assert_eq!(due(&filters), 1);
        filters.all_may_listen();
        assert_eq!(due(&filters), 1);
        filters.set(&pod, open());
        assert_eq!(due(&filters), 1, "the filters are to go");
        filters.remove(&pod);
        filters.listens(&pod);
        assert_eq!(due(&filters), 0);
        // One that an earlier agent left: what it has is not known.
        filters.set(&pod, open());
        assert_eq!(due(&filters), 1);
    }
}
