//! What a pod is told of its sandbox, in order and without loss.

use std::collections::VecDeque;

use jiff::Timestamp;
use krustlet_model::ContainerId;
use krustlet_protocol::ExitReport;
use tokio::sync::mpsc::{self, error::TrySendError};

/// News of a pod, from its sandbox's start to its stop. Lossless; ends (`None`)
/// after [`PodEvent::SandboxDied`] and when the sandbox was stopped.
pub type PodEvents = mpsc::Receiver<PodEvent>;

/// Something that happened in a pod's sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodEvent {
    /// The guest has entered its first function (an http guest: listens).
    Running {
        /// Which run.
        id: ContainerId,
        /// When.
        at: Timestamp,
    },
    /// The container has ended. Said once for each run.
    Exited {
        /// Which run.
        id: ContainerId,
        /// How.
        exit: ExitReport,
    },
    /// The container's log was full and has been renamed.
    LogRotated {
        /// Which run.
        id: ContainerId,
    },
    /// The process is gone. Every container that had not reported its exit has
    /// ended with this code.
    SandboxDied {
        /// 128 and the signal, its own exit code, or 137 when unknown.
        exit_code: i32,
        /// A sentence for people.
        message: String,
    },
}

/// Events that a pod's channel takes before its backlog is used: what a pod of
/// twenty containers says when it starts and ends at once.
const QUEUE: usize = 64;

/// One pod's way to its events.
///
/// Never blocks the reader of the sandbox's socket, since the receiver may be
/// waiting for a reply on that very socket. The backlog is bounded by what the
/// pod itself asked for: two events for each container it created, and one
/// rotation for each, however many there were.
#[derive(Debug)]
pub(crate) struct Feed {
    sender: mpsc::Sender<PodEvent>,
    backlog: VecDeque<PodEvent>,
    /// Whether somebody waits for room in the channel.
    waited_for: bool,
}

/// A feed whose channel is full: await `reserve_owned` on it, drop the permit,
/// and call [`Feed::resume`].
pub(crate) type Full = mpsc::Sender<PodEvent>;

impl Feed {
    pub(crate) fn new() -> (Self, PodEvents) {
        let (sender, events) = mpsc::channel(QUEUE);
        let feed = Self { sender, backlog: VecDeque::new(), waited_for: false };
        (feed, events)
    }

    /// Queues an event. If the channel is full and nobody waits for it yet,
    /// the caller is asked to.
    pub(crate) fn push(&mut self, event: PodEvent) -> Option<Full> {
        let repeated =
            matches!(event, PodEvent::LogRotated { .. }) && self.backlog.contains(&event);
        if !repeated {
            self.backlog.push_back(event);
        }
        self.flush()
    }

    /// Goes on after `full` had room; does nothing if that was another pod's
    /// or an earlier channel.
    pub(crate) fn resume(&mut self, full: &Full) -> Option<Full> {
        if !self.sender.same_channel(full) {
            return None;
        }
        self.waited_for = false;
        self.flush()
    }

    fn flush(&mut self) -> Option<Full> {
        if self.waited_for {
            return None;
        }
        while let Some(event) = self.backlog.pop_front() {
            match self.sender.try_send(event) {
                Ok(()) => {}
                Err(TrySendError::Full(event)) => {
                    self.backlog.push_front(event);
                    self.waited_for = true;
                    return Some(self.sender.clone());
                }
                // The pod is gone and wants no news.
                Err(TrySendError::Closed(_)) => self.backlog.clear(),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(digit: u8) -> ContainerId {
        ContainerId::from_bytes([digit; 32])
    }

    fn running(second: i64) -> PodEvent {
        let at = Timestamp::from_second(second).unwrap();
        PodEvent::Running { id: id(1), at }
    }

    #[test]
    fn rotations_that_nobody_reads_do_not_pile_up() {
        let (mut feed, _events) = Feed::new();
        for second in 0..i64::try_from(QUEUE).unwrap() {
            assert!(feed.push(running(second)).is_none());
        }
        let rotated = || PodEvent::LogRotated { id: id(2) };
        assert!(feed.push(rotated()).is_some(), "somebody has to wait");
        for _ in 0..1000 {
            assert!(feed.push(rotated()).is_none());
        }
        assert_eq!(feed.backlog.len(), 1);
    }

    #[test]
    fn a_pod_that_is_gone_keeps_nothing() {
        let (mut feed, events) = Feed::new();
        drop(events);
        for second in 0..1000 {
            assert!(feed.push(running(second)).is_none());
        }
        assert!(feed.backlog.is_empty());
    }

    proptest! {
        #[test]
        fn events_come_in_order_and_none_is_lost(
            reads in prop::collection::vec(0..40_usize, 0..40), writes in 0..400_i64,
        ) {
            let (mut feed, mut events) = Feed::new();
            let mut full = None;
            let mut seen = Vec::new();
            let mut reads = reads.into_iter();
            for second in 0..writes {
                if let Some(now) = feed.push(running(second)) {
                    prop_assert!(full.is_none(), "one waiter at a time");
                    full = Some(now);
                }
                if second % 10 == 0 {
                    for _ in 0..reads.next().unwrap_or(0) {
                        seen.extend(events.try_recv().ok());
                    }
                    // The waiter runs once there is room.
                    if full.as_ref().is_some_and(|full| full.capacity() > 0) {
                        let ready = full.take();
                        full = ready.and_then(|ready| feed.resume(&ready));
                    }
                }
            }
            loop {
                while let Ok(event) = events.try_recv() {
                    seen.push(event);
                }
                match full.take() {
                    Some(ready) => full = feed.resume(&ready),
                    None => break,
                }
            }
            while let Ok(event) = events.try_recv() {
                seen.push(event);
            }
            prop_assert_eq!(seen, (0..writes).map(running).collect::<Vec<_>>());
        }
    }
}
