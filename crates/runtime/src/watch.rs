//! Reads what a sandbox says until it ends, and passes it to its pods.
//!
//! ```text
//! reading ──connection lost──▶ reached again ──▶ reading
//!                                    └──no answer──▶ killed, buried
//! ```
//!
//! Never waits for a pod, since the pod may be waiting for a reply that only
//! this reader can hand out; what a pod does not take yet is kept in its
//! [`Feed`](crate::events::Feed).

use std::{collections::HashMap, os::fd::OwnedFd, sync::Arc, time::Duration};

use jiff::Timestamp;
use krustlet_model::{Chain, ContainerId, PodUid};
use krustlet_protocol::{
    ContainerReport, ExitReport, RunState, SandboxEvent, connection::CallError, process,
};
use tokio::{
    sync::mpsc::{OwnedPermit, error::SendError},
    task::{JoinError, JoinSet},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    PodEvent, RuntimeError,
    events::Full,
    filter,
    logs::{LogFile, Resumed},
    sandbox::{Reached, Reading, Sandbox},
    words,
    work::{blocking, on_disk},
};

/// Time for a process whose socket has closed to be gone.
const GONE_LIMIT: Duration = Duration::from_secs(2);

/// Time for a reaper to take note of how a process ended.
const REAPED_LIMIT: Duration = Duration::from_secs(1);

/// How often, and how long apart, a log is looked at for its first line: a
/// sandbox tells of a switch just before it writes.
const LOOKS: u32 = 50;
const LOOK: Duration = Duration::from_millis(20);

/// A connection that is lost more often than this, each time less than that after
/// the last, is not made again: its process is of no use.
const LOSSES: u32 = 10;
const LOSS_PERIOD: Duration = Duration::from_mins(1);

/// Between two complaints of a sandbox that are passed on: as often as one says
/// something that is true.
const COMPLAINTS: Duration = Duration::from_mins(1);

/// The longest that is passed on, in characters.
const COMPLAINT: usize = 512;

/// The exit code of a container whose process left no word.
const UNKNOWN: i32 = 137;

/// Something to be done beside reading.
enum Chore {
    /// A log was rotated.
    Rotated { pod: PodUid, id: ContainerId, done: Result<(), RuntimeError> },
    /// Listeners were filtered, and others may be.
    Filtered,
    /// A channel that was full has room, or nobody reads it any more.
    Room { pod: PodUid, full: Full, permit: Result<OwnedPermit<PodEvent>, SendError<()>> },
}

/// Watches one sandbox. Returns when it has ended and every pod has been told,
/// or when stopped.
pub(crate) async fn watch(sandbox: Arc<Sandbox>, reading: Reading, stop: CancellationToken) {
    // However this ends, nobody reads answers then.
    let _down = Down(Arc::clone(&sandbox));
    let mut watcher = Watcher::new(Arc::clone(&sandbox));
    let mut reading = reading;
    let (mut losses, mut lost_at) = (0, Instant::now());
    loop {
        watcher.resume_logs().await;
        if watcher.read(reading, &stop).await == Left::Stopped {
            return;
        }
        losses = if lost_at.elapsed() > LOSS_PERIOD { 1 } else { losses + 1 };
        lost_at = Instant::now();
        if sandbox.is_ending() || losses > LOSSES {
            break;
        }
        let reached = tokio::select! {
            biased;
            // Nothing is lost: the next agent asks for everything.
            () = stop.cancelled() => return,
            reached = sandbox.reach_again() => reached,
        };
        let Some((again, reports)) = reached else { break };
        tracing::warn!(sandbox = sandbox.id, "its connection was lost, and is there again");
        watcher.catch_up(reports);
        sandbox.filters.all_may_listen();
        reading = again;
    }
    sandbox.line_down();
    if !sandbox.is_ending() {
        watcher.bury().await;
    }
    // What is left are pods that have not yet taken all their news.
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            chore = watcher.chores.join_next() => match chore {
                Some(chore) => watcher.finish(chore),
                None => break,
            },
        }
    }
    // Ends the events of those pods.
    watcher.sandbox.table().pods.clear();
}

/// Why reading ended.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    Stopped,
    Lost,
}

/// Says, when dropped, that nobody reads a sandbox's answers.
struct Down(Arc<Sandbox>);

impl Drop for Down {
    fn drop(&mut self) {
        self.0.line_down();
    }
}

struct Watcher {
    sandbox: Arc<Sandbox>,
    chores: JoinSet<Chore>,
    /// The logs that are being turned, and whether there is news of another
    /// switch. One at a time, since a sandbox may fill a log as soon as it
    /// holds it. It then has none to go on with, so there is never more news
    /// than that, unless it lies.
    turning: HashMap<ContainerId, bool>,
    /// Had by the look at listeners that is being made, if one is: only one at a time.
    look: Arc<()>,
    /// When the sandbox last complained of something.
    complained: Option<Instant>,
}

impl Watcher {
    fn new(sandbox: Arc<Sandbox>) -> Self {
        let turning = HashMap::new();
        let look = Arc::default();
        Self { sandbox, chores: JoinSet::new(), turning, look, complained: None }
    }

    /// Takes what comes until the connection is lost.
    async fn read(&mut self, reading: Reading, stop: &CancellationToken) -> Left {
        let Reading { mut incoming, early } = reading;
        for news in early {
            self.take(news);
        }
        let sandbox = Arc::clone(&self.sandbox);
        loop {
            tokio::select! {
                biased;
                // All four are cancel-safe, and no arm awaits in its body.
                () = stop.cancelled() => return Left::Stopped,
                Some(chore) = self.chores.join_next() => self.finish(chore),
                () = sandbox.filters.due(), if !self.is_looking() => self.filter(),
                news = incoming.next() => match news {
                    Ok(Some(news)) => self.take(news),
                    Ok(None) => break,
                    Err(error) => {
                        let sandbox = &self.sandbox.id;
                        tracing::error!(sandbox, %error, "cannot be read any more");
                        break;
                    }
                },
            }
        }
        // Those whose calls have ended with it wait to hear of this.
        self.sandbox.line_lost();
        Left::Lost
    }

    /// Tells what happened while there was no connection. What is told twice is
    /// told on once.
    fn catch_up(&mut self, reports: Vec<ContainerReport>) {
        for ContainerReport { id, state, .. } in reports {
            match state {
                RunState::Created => {}
                RunState::Running { started_at } => {
                    self.take(SandboxEvent::Running { id, at: started_at });
                }
                RunState::Exited(exit) => {
                    if let Some(at) = exit.started_at {
                        self.take(SandboxEvent::Running { id: id.clone(), at });
                    }
                    self.take(SandboxEvent::Exited { id, exit });
                }
            }
        }
    }

    /// Catches up with the logs that were switched while nobody was told. A new
    /// sandbox has none.
    async fn resume_logs(&mut self) {
        let logs: Vec<_> = self
            .sandbox
            .table()
            .containers
            .iter()
            .filter(|(_, container)| container.reached != Reached::Ended)
            .filter(|(id, _)| !self.turning.contains_key(*id))
            .map(|(id, container)| (id.clone(), container.log.clone()))
            .collect();
        if logs.is_empty() {
            return;
        }
        let log_files = self.sandbox.common.log_files;
        let looked = blocking(move || {
            let look = |(id, log): (ContainerId, LogFile)| {
                let found = log.resume(log_files, Timestamp::now());
                (id, log, found)
            };
            Ok(logs.into_iter().map(look).collect::<Vec<_>>())
        });
        for (id, log, found) in looked.await.unwrap_or_default() {
            match found {
                Ok(Resumed::Supplied) => {}
                Ok(Resumed::Wants(next)) => self.supply(id, log, next),
                Err(error) => tracing::warn!(container = %id, %error, "cannot resume its log"),
            }
        }
    }

    fn supply(&mut self, id: ContainerId, log: LogFile, next: OwnedFd) {
        let pod = match self.sandbox.table().containers.get_mut(&id) {
            Some(container) => {
                container.caught_up = true;
                container.pod.clone()
            }
            None => return,
        };
        self.turning.insert(id.clone(), false);
        let sandbox = Arc::clone(&self.sandbox);
        self.chores.spawn(async move {
            let done = supply(&sandbox, &id, log, next).await;
            Chore::Rotated { pod, id, done }
        });
    }

    fn take(&mut self, news: SandboxEvent) {
        match news {
            SandboxEvent::Running { id, at } => {
                let event = PodEvent::Running { id: id.clone(), at: time(at) };
                self.reached(&id, Reached::Running, event);
            }
            SandboxEvent::Exited { id, exit } => {
                let event = PodEvent::Exited { id: id.clone(), exit: words::of_exit(exit) };
                self.reached(&id, Reached::Ended, event);
            }
            SandboxEvent::LogRotated { id } => self.rotate(id),
            SandboxEvent::Listening { pod } => self.sandbox.filters.listens(&pod),
            SandboxEvent::Complained { what } => {
                self.complain(&what);
            }
        }
    }

    /// Filters what pods listen on anew.
    fn filter(&mut self) {
        let sandbox = Arc::clone(&self.sandbox);
        self.look(async move { filter::renew(&sandbox).await });
    }

    /// Looks at listeners. However that ends, there may be another look then.
    fn look(&mut self, filtered: impl Future<Output = ()> + Send + 'static) {
        let look = Arc::clone(&self.look);
        self.chores.spawn(async move {
            filtered.await;
            drop(look);
            Chore::Filtered
        });
    }

    fn is_looking(&self) -> bool {
        Arc::strong_count(&self.look) > 1
    }

    /// Passes a complaint on to people, as often and as long as one may be: the
    /// sandbox may lie. Says whether it did.
    fn complain(&mut self, what: &str) -> bool {
        let now = Instant::now();
        if self.complained.is_some_and(|last| now < last + COMPLAINTS) {
            return false;
        }
        self.complained = Some(now);
        let words: String = what.chars().take(COMPLAINT).collect();
        tracing::error!(sandbox = self.sandbox.id, pid = self.sandbox.pid, "{words:?}");
        true
    }

    /// Tells the pod, unless it knows: a sandbox repeats itself to an agent
    /// that comes back.
    fn reached(&mut self, id: &ContainerId, reached: Reached, event: PodEvent) {
        let sandbox = Arc::clone(&self.sandbox);
        let mut table = sandbox.table();
        let Some(container) = table.containers.get_mut(id) else {
            tracing::debug!(container = %id, ?event, "of a container that was removed");
            return;
        };
        if container.reached >= reached {
            return;
        }
        container.reached = reached;
        let pod = container.pod.clone();
        let full = table.pods.get_mut(&pod).and_then(|feed| feed.push(event));
        drop(table);
        self.wait_for(pod, full);
    }

    fn tell(&mut self, pod: PodUid, event: PodEvent) {
        let full = self.sandbox.table().pods.get_mut(&pod).and_then(|feed| feed.push(event));
        self.wait_for(pod, full);
    }

    fn wait_for(&mut self, pod: PodUid, full: Option<Full>) {
        if let Some(full) = full {
            self.chores.spawn(async move {
                let permit = full.clone().reserve_owned().await;
                Chore::Room { pod, full, permit }
            });
        }
    }

    fn rotate(&mut self, id: ContainerId) {
        if let Some(again) = self.turning.get_mut(&id) {
            *again = true;
            return;
        }
        let found = {
            let table = self.sandbox.table();
            let container = table.containers.get(&id);
            container.map(|container| (container.pod.clone(), container.log.clone()))
        };
        let Some((pod, log)) = found else { return };
        self.turning.insert(id.clone(), false);
        let sandbox = Arc::clone(&self.sandbox);
        self.chores.spawn(async move {
            let done = rotate(&sandbox, &id, log).await;
            Chore::Rotated { pod, id, done }
        });
    }

    /// Looks again at a log whose supply was cut off with the connection; it is
    /// still being turned.
    fn resume(&mut self, id: ContainerId) {
        let sandbox = Arc::clone(&self.sandbox);
        let found = sandbox.table().containers.get_mut(&id).map(|container| {
            container.caught_up = true;
            (container.pod.clone(), container.log.clone())
        });
        let Some((pod, log)) = found else {
            self.turning.remove(&id);
            return;
        };
        self.chores.spawn(async move {
            let done = resume(&sandbox, &id, log).await;
            Chore::Rotated { pod, id, done }
        });
    }

    fn finish(&mut self, chore: Result<Chore, JoinError>) {
        match chore {
            // Whether the sandbox has it is not known, nor what it did since.
            Ok(Chore::Rotated { id, done: Err(RuntimeError::Call(CallError::Gone)), .. }) => {
                self.resume(id);
            }
            Ok(Chore::Rotated { pod, id, done }) => {
                if let Err(error) = done {
                    // It goes on without; when this one is full, output is lost
                    // and counted.
                    tracing::warn!(container = %id, error = %Chain(&error), "cannot rotate its log");
                }
                self.tell(pod, PodEvent::LogRotated { id: id.clone() });
                if self.turning.remove(&id) == Some(true) {
                    self.rotate(id);
                }
            }
            Ok(Chore::Filtered) => {}
            Ok(Chore::Room { pod, full, permit }) => {
                // Only this task sends, so that the room stays.
                drop(permit);
                let full =
                    self.sandbox.table().pods.get_mut(&pod).and_then(|feed| feed.resume(&full));
                self.wait_for(pod, full);
            }
            Err(error) => tracing::error!(sandbox = self.sandbox.id, %error, "a chore failed"),
        }
    }

    /// Finds out how the process ended and tells its pods.
    async fn bury(&mut self) {
        let sandbox = Arc::clone(&self.sandbox);
        let wait_status = wait_status(&sandbox).await;
        let (exit_code, message) = in_words(wait_status);
        tracing::warn!(sandbox = sandbox.id, pid = sandbox.pid, exit_code, "died: {message}");

        let (state, id) = (sandbox.common.state.clone(), sandbox.id.clone());
        let written = blocking(move || state.exits(&id)).await.unwrap_or_else(|error| {
            tracing::warn!(sandbox = sandbox.id, %error, "cannot read its status file");
            HashMap::new()
        });
        for (id, exit) in written {
            let event = PodEvent::Exited { id: id.clone(), exit };
            self.reached(&id, Reached::Ended, event);
        }
        let pods: Vec<_> = {
            let mut table = sandbox.table();
            // Under the lock: who comes now is refused, who came hears of it.
            sandbox.mark_dead();
            for container in table.containers.values_mut() {
                container.reached = Reached::Ended;
            }
            table.pods.keys().cloned().collect()
        };
        for pod in pods {
            self.tell(pod, PodEvent::SandboxDied { exit_code, message: message.clone() });
        }
    }
}

/// Renames a log that is full and supplies another, once the next is written
/// to.
///
/// If the agent has caught up with this log when it came back, the news may be
/// of the very switch that it has seen already: then nothing is written to the
/// next log, and it stays. Otherwise the sandbox's word is enough, as a full
/// disk takes no line.
async fn rotate(sandbox: &Sandbox, id: &ContainerId, log: LogFile) -> Result<(), RuntimeError> {
    let mut looks = 0;
    while looks < LOOKS && !log.is_switched() {
        looks += 1;
        sleep(LOOK).await;
    }
    let is_switched = log.is_switched();
    {
        let mut table = sandbox.table();
        let Some(container) = table.containers.get_mut(id) else { return Ok(()) };
        if !is_switched && std::mem::take(&mut container.caught_up) {
            return Ok(());
        }
    }
    let log_files = sandbox.common.log_files;
    let turning = log.clone();
    let next = blocking(move || turning.rotate(log_files, Timestamp::now()))
        .await
        .map_err(|source| sandbox.common.state_error(source))?;
    supply(sandbox, id, log, next).await
}

/// Catches up with a log, of which the sandbox may have the next already. It then
/// has it twice and goes on in it once more, which [`rotate`] passes over.
async fn resume(sandbox: &Sandbox, id: &ContainerId, log: LogFile) -> Result<(), RuntimeError> {
    let log_files = sandbox.common.log_files;
    let turning = log.clone();
    let resumed = blocking(move || turning.resume(log_files, Timestamp::now()))
        .await
        .map_err(|source| sandbox.common.state_error(source))?;
    match resumed {
        Resumed::Supplied => Ok(()),
        Resumed::Wants(next) => supply(sandbox, id, log, next).await,
    }
}

/// Hands over a log and notes that it was.
async fn supply(
    sandbox: &Sandbox,
    id: &ContainerId,
    log: LogFile,
    next: OwnedFd,
) -> Result<(), RuntimeError> {
    sandbox.hand_log(id.clone(), next).await?;
    let common = sandbox.common.clone();
    on_disk(move || log.supplied().map_err(|source| common.state_error(source))).await
}

/// How the process ended: by the zygote's word, the kernel's, or the journal's.
async fn wait_status(sandbox: &Sandbox) -> Option<i32> {
    let process = sandbox.process()?;
    if tokio::time::timeout(GONE_LIMIT, process.ended()).await.is_err() {
        tracing::warn!(sandbox = sandbox.id, "closed its socket and lives; it is killed");
        if let Err(error) = process.kill() {
            tracing::error!(sandbox = sandbox.id, %error, "cannot be killed");
        }
    }
    let mut told = sandbox.wait_status.subscribe();
    let by_zygote = async {
        match told.wait_for(Option::is_some).await {
            Ok(status) => *status,
            Err(_) => None,
        }
    };
    let by_kernel = process.exit_status_within(REAPED_LIMIT);
    tokio::select! {
        biased;
        Some(status) = by_zygote => return Some(status),
        status = by_kernel => {
            if let Ok(Some(status)) = status {
                return Some(status);
            }
        }
    }
    let (state, id, pid) = (sandbox.common.state.clone(), sandbox.id.clone(), sandbox.pid);
    blocking(move || state.journalled(&id, pid)).await.ok().flatten()
}

/// What a wait status means for the containers of the process.
pub(crate) fn in_words(wait_status: Option<i32>) -> (i32, String) {
    let Some(status) = wait_status else {
        return (UNKNOWN, "the sandbox process ended, how is not known".to_owned());
    };
    let code = process::exit_code(status);
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        (code, format!("the sandbox process was killed by signal {signal}"))
    } else if code == 0 {
        // Its containers had not ended, so this is no success of theirs.
        (UNKNOWN, "the sandbox process ended before its containers".to_owned())
    } else {
        (code, format!("the sandbox process ended with code {code}"))
    }
}

/// How a container ended whose process left no word of it.
pub(crate) fn lost(wait_status: Option<i32>, now: Timestamp) -> ExitReport {
    let (exit_code, message) = in_words(wait_status);
    ExitReport {
        exit_code,
        reason: "Error".to_owned(),
        message,
        started_at: None,
        finished_at: now.as_microsecond(),
    }
}

/// Microseconds since the Unix epoch. What no calendar holds becomes now.
fn time(micros: i64) -> Timestamp {
    Timestamp::from_microsecond(micros).unwrap_or_else(|_| Timestamp::now())
}

#[cfg(test)]
mod tests {
    use krustlet_model::policy::PodPolicy;
    use krustlet_protocol::PodNetwork;

    use super::*;
    use crate::{
        Domain, NetworkKind, PodUser,
        mounts::Handover,
        record::{SandboxRecord, State},
        sandbox::{Common, Container},
    };

    fn sandbox(home: &tempfile::TempDir) -> Arc<Sandbox> {
        let common = Common {
            state: State::open(home.path().join("rt")).unwrap(),
            handover: Handover::Plain,
            log_files: 5,
            services: None,
            looks: Arc::default(),
        };
        let record = SandboxRecord {
            pid: 1,
            start_time: None,
            boot: String::new(),
            domain: Domain::Pod,
            user: PodUser { uid: 1, gid: 1, groups: vec![] },
            network: NetworkKind::Node,
        };
        Arc::new(Sandbox::found_dead("1".into(), record, common))
    }

    #[tokio::test(start_paused = true)]
    async fn a_sandbox_that_complains_without_end_is_heard_once_a_minute() {
        let mut watcher = Watcher::new(sandbox(&tempfile::tempdir().unwrap()));
        let mut heard = 0;
        for _ in 0..300 {
            heard += usize::from(watcher.complain(&"\n".repeat(1 << 20)));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(heard, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn listeners_are_filtered_when_fewer_others_are() {
        let sandbox = sandbox(&tempfile::tempdir().unwrap());
        let policy = Some(PodPolicy::closed());
        let network = PodNetwork { policy, ..PodNetwork::default() };
        sandbox.filters.set(&PodUid::new("a"), filter::Guard::of(&network));
        let places = &sandbox.common.looks.places;
        let others = [places.acquire().await.unwrap(), places.acquire().await.unwrap()];
        let mut look = std::pin::pin!(filter::renew(&sandbox));
        let waited = tokio::time::timeout(Duration::from_hours(1), &mut look).await;
        waited.unwrap_err();
        drop(others);
        look.await;
    }

    #[tokio::test]
    async fn after_a_look_that_panicked_there_is_another() {
        let mut watcher = Watcher::new(sandbox(&tempfile::tempdir().unwrap()));
        for _ in 0..2 {
            assert!(!watcher.is_looking());
            watcher.look(async { panic!("a defect") });
            assert!(watcher.is_looking(), "one at a time");
            let chore = watcher.chores.join_next().await.unwrap();
            watcher.finish(chore);
        }
        assert!(!watcher.is_looking());
    }

    #[tokio::test]
    async fn a_sandbox_that_lies_about_its_logs_has_one_rotation_at_a_time() {
        let home = tempfile::tempdir().unwrap();
        let sandbox = sandbox(&home);
        let ids = [ContainerId::from_bytes([1; 32]), ContainerId::from_bytes([2; 32])];
        for id in &ids {
            let container = Container {
                pod: PodUid::new("a"),
                log: LogFile::new(home.path().join("0.log")),
                reached: Reached::Running,
                caught_up: false,
            };
            sandbox.table().containers.insert(id.clone(), container);
        }
        let mut watcher = Watcher::new(sandbox);
        for _ in 0..1000 {
            for id in &ids {
                watcher.take(SandboxEvent::LogRotated { id: id.clone() });
            }
        }
        assert_eq!(watcher.chores.len(), ids.len());
        assert_eq!(watcher.turning.len(), ids.len());
    }

    #[test]
    fn a_process_that_leaves_in_peace_is_still_no_success() {
        assert_eq!(in_words(Some(0)).0, 137);
        assert_eq!(in_words(None).0, 137);
        assert_eq!(in_words(Some(libc::SIGKILL)).0, 137);
        assert_eq!(in_words(Some(libc::SIGSYS)).0, 159);
        assert_eq!(in_words(Some(134 << 8)).0, 134);
    }
}
