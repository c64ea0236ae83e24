//! The containers of a sandbox and what each of them does.
//!
//! Only the control thread changes states, by what the guests' thread tells;
//! so a list is always whole, whatever guests do.

use std::{collections::HashMap, sync::Arc};

use krustlet_model::{ContainerId, PodUid};
use krustlet_protocol::{ContainerReport, ExitReport, Failure, RunState, StatsReport};

use crate::container::Container;

/// Containers a sandbox may hold. A full node in one sandbox has 10,000 pods.
const MOST: usize = 65_536;

struct Entry {
    /// Counts up; the order of creation.
    number: u64,
    container: Arc<Container>,
    state: State,
}

/// [`RunState`], and the moment between start and the guest's first function.
enum State {
    Created,
    Starting,
    Running { started_at: i64 },
    Exited(ExitReport),
}

impl State {
    fn is_over(&self) -> bool {
        matches!(self, Self::Exited(_))
    }
}

/// See the module.
#[derive(Default)]
pub(crate) struct Table {
    entries: HashMap<ContainerId, Entry>,
    next: u64,
}

impl Table {
    /// Whether one more may be created under this id.
    pub(crate) fn check_new(&self, id: &ContainerId) -> Result<(), Failure> {
        if self.entries.contains_key(id) {
            return Err(Failure::Malformed { why: format!("there is a container {id} already") });
        }
        if self.entries.len() >= MOST {
            return Err(Failure::Failed { message: "this sandbox is full".into() });
        }
        Ok(())
    }

    pub(crate) fn insert(&mut self, container: Arc<Container>) {
        self.next += 1;
        let entry = Entry { number: self.next, container, state: State::Created };
        self.entries.insert(entry.container.spec.id.clone(), entry);
    }

    fn get(&self, id: &ContainerId) -> Result<&Entry, Failure> {
        self.entries.get(id).ok_or_else(|| Failure::NotFound { id: id.to_string() })
    }

    pub(crate) fn container(&self, id: &ContainerId) -> Result<&Arc<Container>, Failure> {
        Ok(&self.get(id)?.container)
    }

    /// Takes a container from created to starting.
    pub(crate) fn start(&mut self, id: &ContainerId) -> Result<Arc<Container>, Failure> {
        self.get(id)?;
        let failed = || Failure::Failed { message: format!("{id} has been started already") };
        let entry = self.entries.get_mut(id).ok_or_else(failed)?;
        if !matches!(entry.state, State::Created) {
            return Err(failed());
        }
        entry.state = State::Starting;
        Ok(Arc::clone(&entry.container))
    }

    /// The container, if a guest runs in it.
    pub(crate) fn running(&self, id: &ContainerId) -> Result<&Arc<Container>, Failure> {
        let entry = self.get(id)?;
        match entry.state {
            State::Running { .. } => Ok(&entry.container),
            State::Created | State::Starting | State::Exited(_) => {
                Err(Failure::Failed { message: format!("{id} does not run") })
            }
        }
    }

    pub(crate) fn is_created(&self, id: &ContainerId) -> Result<bool, Failure> {
        Ok(matches!(self.get(id)?.state, State::Created))
    }

    pub(crate) fn ran(&mut self, id: &ContainerId, started_at: i64) {
        if let Some(entry) = self.entries.get_mut(id)
            && !entry.state.is_over()
        {
            entry.state = State::Running { started_at };
        }
    }

    /// Notes an end; false if it is no news.
    pub(crate) fn ended(&mut self, id: &ContainerId, exit: &ExitReport) -> bool {
        match self.entries.get_mut(id) {
            Some(entry) if !entry.state.is_over() => {
                entry.state = State::Exited(exit.clone());
                true
            }
            Some(_) | None => false,
        }
    }

    /// Forgets a container that does not run.
    pub(crate) fn remove(&mut self, id: &ContainerId) -> Result<(), Failure> {
        match self.get(id)?.state {
            State::Created | State::Exited(_) => {
                self.entries.remove(id);
                Ok(())
            }
            State::Starting | State::Running { .. } => {
                Err(Failure::Failed { message: format!("{id} still runs; stop it first") })
            }
        }
    }

    /// Forgets the containers of a pod that do not run, and returns the others.
    pub(crate) fn clear_pod(&mut self, pod: &PodUid) -> Vec<Arc<Container>> {
        self.entries.retain(|_, entry| {
            entry.container.spec.pod != *pod
                || matches!(entry.state, State::Starting | State::Running { .. })
        });
        let left = self.entries.values().filter(|entry| entry.container.spec.pod == *pod);
        left.map(|entry| Arc::clone(&entry.container)).collect()
    }

    /// Containers that have been started and have not ended.
    pub(crate) fn unfinished(&self) -> Vec<Arc<Container>> {
        let unfinished = self
            .in_order()
            .into_iter()
            .filter(|entry| matches!(entry.state, State::Starting | State::Running { .. }));
        unfinished.map(|entry| Arc::clone(&entry.container)).collect()
    }

    pub(crate) fn reports(&self) -> Vec<ContainerReport> {
        let report = |entry: &Entry| ContainerReport {
            id: entry.container.spec.id.clone(),
            pod: entry.container.spec.pod.clone(),
            state: match &entry.state {
                State::Created | State::Starting => RunState::Created,
                State::Running { started_at } => RunState::Running { started_at: *started_at },
                State::Exited(exit) => RunState::Exited(exit.clone()),
            },
        };
        self.in_order().into_iter().map(report).collect()
    }

    pub(crate) fn stats(&self) -> Vec<StatsReport> {
        let report = |entry: &Entry| StatsReport {
            id: entry.container.spec.id.clone(),
            pod: entry.container.spec.pod.clone(),
            memory_bytes: entry.container.usage.memory(),
            cpu_ns: entry.container.usage.cpu(),
            log_dropped_bytes: entry.container.log.dropped(),
            network: entry.container.stack.report(),
        };
        self.in_order().into_iter().map(report).collect()
    }

    fn in_order(&self) -> Vec<&Entry> {
        let mut entries: Vec<_> = self.entries.values().collect();
        entries.sort_unstable_by_key(|entry| entry.number);
        entries
    }
}
