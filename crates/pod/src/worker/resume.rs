//! Going on where an earlier agent was.
//!
//! | checkpoint says | sandbox says | the run |
//! |---|---|---|
//! | open | running | goes on: same id, same count |
//! | open | created | is entered |
//! | open | exited | has ended like that |
//! | open | nothing, but lives | was never made: begins anew |
//! | open | nothing, it is dead | ended with 137 |
//! | open | there is none | ended with 255: the machine was restarted |
//! | ended | anything | has ended |
//!
//! Source of 255: containerd's answer after a reboot.

use krustlet_model::{
    observed::{ContainerState, PodFailure},
    resize::ContainerResources,
    restarts,
};
use krustlet_protocol::{ContainerReport, ExitReport, RunState};
use tokio::time::Instant;

use super::{Files, Removal, Sandbox, Worker, own_grace, stop::killed};
use crate::{
    checkpoint::Checkpoint,
    containers::{Leftover, Run, Slot},
    decide::Phase,
    messages::Said,
    outside::Adopted,
    users::Allotted,
};

/// What a worker begins with.
#[derive(Debug)]
pub(crate) enum Start {
    /// A pod that nothing was done for.
    Fresh(Allotted),
    /// One that an earlier agent left, what is left of its sandbox, and what
    /// those of its runs left that have ended since.
    Resumed(Box<Checkpoint>, Option<Box<Adopted>>, Said),
    /// One that is over, and of which nothing is left on this node.
    Ended(Allotted),
    /// One that this node refuses.
    Refused(Allotted, PodFailure),
    /// One whose task died: what it knew is lost.
    Broken(Allotted, PodFailure),
}

impl Start {
    pub(crate) fn user(&self) -> &Allotted {
        match self {
            Self::Fresh(user)
            | Self::Ended(user)
            | Self::Refused(user, _)
            | Self::Broken(user, _) => user,
            Self::Resumed(checkpoint, _, _) => &checkpoint.user,
        }
    }
}

impl Worker {
    pub(super) fn resume(&mut self, start: Start) {
        let wanted = self.wanted.borrow_and_update().clone();
        self.reported.again(wanted.is_known && !wanted.is_gone);
        match start {
            Start::Fresh(_) => {}
            Start::Resumed(checkpoint, adopted, said) => self.go_on(*checkpoint, adopted, &said),
            Start::Ended(_) => self.nothing_left(),
            Start::Refused(_, failure) => {
                self.nothing_left();
                self.slots.clear();
                self.failure = Some(failure);
                self.reported.speak_up();
            }
            Start::Broken(_, failure) => {
                self.failure = Some(failure);
                self.phase = Phase::Terminating(own_grace(&self.pod));
                self.entered(self.phase);
                self.reported.speak_up();
            }
        }
    }

    fn nothing_left(&mut self) {
        self.saves.is_off = true;
        self.sandbox = Sandbox::Stopped;
        self.files = Files::Removed;
        self.removal = Removal::NotAsked;
        self.phase = Phase::Terminated;
        for slot in &mut self.slots {
            slot.run = Run::Over;
            slot.ended.cancel();
        }
    }

    fn go_on(&mut self, checkpoint: Checkpoint, adopted: Option<Box<Adopted>>, said: &Said) {
        let Checkpoint { observed, status, place, is_over, containers, .. } = checkpoint;
        // One that is over and has no sandbox has let its addresses go.
        if !is_over || adopted.is_some() {
            self.place = place;
        }
        self.started_at = observed.started_at;
        self.failure = observed.failure;
        self.had_sandbox = observed.had_sandbox;
        self.reported.resume(status);
        for (seen, note) in observed.containers.into_iter().zip(containers) {
            if let Some(slot) = self.slots.iter_mut().find(|slot| slot.seen.name == seen.name) {
                slot.resume(seen, note);
            }
        }
        // An agent that could not change them did not write them down.
        for ((_, container), slot) in restarts::containers(&self.pod).zip(&mut self.slots) {
            slot.seen.resources.get_or_insert_with(|| ContainerResources::of(container));
        }
        if is_over {
            self.phase = Phase::Terminating(own_grace(&self.pod));
        } else if self.slots.iter().any(|slot| slot.has_begun) {
            self.phase = Phase::Running;
        }
        let now = Instant::now();
        match adopted {
            Some(adopted) if adopted.alive => {
                let Adopted { containers, events, .. } = *adopted;
                self.sandbox = Sandbox::Up;
                self.events = Some(events);
                // What it was told, an agent with other settings may have said.
                self.rules_are_old();
                self.take_limits();
                // They were in place; what changed meanwhile is looked for now.
                self.files = Files::Set { refresh: self.next_refresh().map(|_| now) };
                self.adopt(containers, is_over, said);
                self.reconsider(is_over);
            }
            Some(adopted) => {
                self.adopt(adopted.containers, is_over, said);
                let message = "the sandbox process ended while no agent watched";
                self.lost(137, "Error", message, said);
                self.reconsider(is_over);
                self.sandbox_lost(now);
            }
            None => {
                let had_any = self.slots.iter().any(Slot::is_open);
                self.lost(255, "Unknown", "", said);
                self.reconsider(is_over);
                if had_any || observed.sandbox_ready {
                    self.sandbox_lost(now);
                }
            }
        }
        if is_over {
            self.entered(self.phase);
        }
    }

    /// Takes what a sandbox says of its containers.
    fn adopt(&mut self, containers: Vec<ContainerReport>, is_over: bool, said: &Said) {
        for ContainerReport { id, state, .. } in containers {
            let of = self.slots.iter().position(|slot| slot.seen.id.as_ref() == Some(&id));
            let Some(index) = of.filter(|&index| self.slots[index].is_open()) else {
                match state {
                    RunState::Exited(_) => match of {
                        // Its end is on disk already.
                        Some(index) => {
                            let leftover = Leftover { id, needs: 0, is_asked: false };
                            self.slots[index].leftover = Some(leftover);
                        }
                        None => self.remove_stranger(id),
                    },
                    // Made for a run that was called off.
                    RunState::Created | RunState::Running { .. } => self.stop_stranger(id),
                }
                continue;
            };
            match state {
                RunState::Running { started_at } => {
                    self.slots[index].run = Run::Entered { id: id.clone(), stop_by: None };
                    self.slots[index].has_begun = true;
                    let at = jiff::Timestamp::from_microsecond(started_at)
                        .unwrap_or_else(|_| self.context.config.clock.now());
                    // Its state may say so already, with the same time.
                    if matches!(self.slots[index].seen.state, ContainerState::Running { .. }) {
                        self.resume_probing(index);
                    } else {
                        let probing = self.probing(index);
                        self.slots[index].running(&id, at, probing);
                    }
                }
                RunState::Created if is_over => self.slots[index].never_made(),
                RunState::Created => self.slots[index].was_created(id, self.saves.done),
                RunState::Exited(exit) => self.take_exit(index, &id, exit, said),
            }
        }
        for slot in &mut self.slots {
            if slot.is_open() && slot.live().is_none() && self.sandbox == Sandbox::Up {
                slot.never_made();
            }
        }
        self.enter_saved();
    }

    /// Every run whose end nobody saw has ended like this.
    fn lost(&mut self, exit_code: i32, reason: &str, message: &str, said: &Said) {
        let at = self.context.config.clock.now().as_microsecond();
        for index in 0..self.slots.len() {
            if !self.slots[index].is_open() {
                continue;
            }
            if let Some(id) = self.slots[index].seen.id.clone() {
                let reason = reason.to_owned();
                let exit = ExitReport { exit_code, reason, ..killed(message, at) };
                self.take_exit(index, &id, exit, said);
            }
        }
    }

    /// Decides for each container that does not run whether it will.
    fn reconsider(&mut self, is_over: bool) {
        let clock = self.context.config.clock.clone();
        for slot in &mut self.slots {
            if matches!(slot.run, Run::Idle { .. }) && !slot.is_open() {
                slot.reconsider(is_over, &clock);
            }
        }
    }

    fn stop_stranger(&mut self, id: krustlet_model::ContainerId) {
        let runtime = &self.context.outside.runtime;
        let stopped =
            runtime.stop_container(self.uid.clone(), id.clone(), std::time::Duration::ZERO);
        self.jobs.spawn(async move {
            // Its end comes as an event, which has it removed.
            if let Err(refused) = stopped.await {
                tracing::debug!(%refused, %id, "cannot stop an unknown container");
            }
            super::Done::Nothing
        });
    }
}
