//! What an earlier agent left: pods that go on, and what nobody speaks for.
//!
//! ```text
//! checkpoints, sandboxes ─▶ each address to whom it belongs ─▶ tasks of the pods
//!                      └──▶ strays: removed before any new pod is looked at
//! ```
//!
//! Every pod that goes on is given what it had before the task of any of them is
//! begun: one that waits for an address may be given one at once.

use std::sync::Arc;

use krustlet_model::{Chain, PodUid};
use krustlet_protocol::RunState;
use krustlet_volume::{VolumeOwner, Volumes};
use tokio::task::spawn_blocking;

use super::PodsTask;
use crate::{
    checkpoint::Checkpoint,
    config::Context,
    messages::{self, Said},
    outside::{Adopted, NetworkKind},
    place,
    worker::{Start, Wanted},
};

/// A pod whose checkpoint was found.
#[derive(Debug)]
pub(super) struct Left {
    pub(super) uid: PodUid,
    pub(super) checkpoint: Checkpoint,
    /// Its sandbox, if there is anything left of it.
    pub(super) adopted: Option<Adopted>,
}

impl Left {
    fn lives(&self) -> bool {
        self.adopted.as_ref().is_some_and(|adopted| adopted.alive)
    }

    /// Reads what its runs left that have ended since. Blocks.
    pub(super) fn read(self, context: &Context) -> (Self, Said) {
        let asks = messages::left(context, &self.checkpoint, self.adopted.as_ref());
        let owner = context.volume_owner(&self.checkpoint.user);
        let volumes = Volumes::new(&context.directories.of(&self.uid), owner);
        (self, messages::read(&volumes, asks))
    }
}

impl PodsTask {
    /// Gives each pod the addresses that it has. Where two claim one it is that
    /// of the pod whose sandbox lives.
    pub(super) async fn keep_addresses(&self, left: &mut [Left]) {
        for lives in [true, false] {
            for one in left.iter_mut().filter(|one| one.lives() == lives) {
                self.keep_address(one).await;
            }
        }
    }

    async fn keep_address(&self, left: &mut Left) {
        let Left { uid, checkpoint, adopted } = left;
        // One that was killed may have made the sandbox and not written it down.
        let place = checkpoint.place.take();
        checkpoint.place = place
            .or_else(|| adopted.as_ref().and_then(place::of_sandbox))
            .or_else(|| place::of_older_agent(&checkpoint.observed));
        let Some(place) = &checkpoint.place else { return };
        if place.kind == NetworkKind::Node {
            return;
        }
        let network = &self.context.outside.network;
        if let Err(error) = network.restore(uid, &place.addresses) {
            tracing::error!(
                %uid, %error,
                "a pod's address cannot be kept for it: its sandbox is ended, and it gets another"
            );
            checkpoint.place = None;
            if let Some(adopted) = adopted.as_mut().filter(|adopted| adopted.alive) {
                self.end_sandbox(adopted).await;
            }
            return;
        }
        // Its sandbox is gone, but whether the addresses were let go is not on
        // disk: the agent died in between. They rest from now on.
        if checkpoint.is_over && adopted.is_none() {
            network.release(uid);
        }
    }

    /// Keeps others from the addresses of a sandbox that nobody knows, until it is
    /// gone.
    pub(super) fn reserve(&self, stray: &Adopted) {
        let uid = &stray.pod;
        let of_pods = place::of_sandbox(stray).filter(|place| place.kind == NetworkKind::Pods);
        if let Some(place) = of_pods
            && let Err(error) = self.context.outside.network.restore(uid, &place.addresses)
        {
            tracing::error!(%uid, %error, "a sandbox that nobody knows is at a pod's address");
        }
    }

    /// Ends a sandbox that is at another pod's address. What ran in it has ended
    /// with it.
    async fn end_sandbox(&self, adopted: &mut Adopted) {
        let uid = adopted.pod.clone();
        if let Err(error) = self.context.outside.runtime.stop_pod_sandbox(uid.clone()).await {
            tracing::error!(%uid, %error, "cannot end a sandbox that is at another pod's address");
        }
        adopted.alive = false;
        adopted.containers.retain(|one| matches!(one.state, RunState::Exited(_)));
    }

    /// Goes on with a pod of an earlier agent.
    pub(super) fn take_up(&mut self, left: Left, said: Said) {
        let Left { uid, checkpoint, adopted } = left;
        self.users.keep(&checkpoint.user);
        let wanted = Wanted {
            pod: Arc::new(checkpoint.pod.clone()),
            wish: Arc::new(checkpoint.pod.clone()),
            pending: None,
            is_known: false,
            is_gone: false,
            stop: None,
        };
        let start = Start::Resumed(Box::new(checkpoint), adopted.map(Box::new), said);
        self.begin(uid, wanted, start, true);
    }

    /// Ends sandboxes and removes files that no checkpoint speaks of: none of
    /// their guests was entered, or it is not known what became of them.
    pub(super) async fn remove_strays(&mut self) {
        for uid in std::mem::take(&mut self.strays) {
            match self.context.outside.runtime.stop_pod_sandbox(uid.clone()).await {
                Ok(()) => self.context.outside.network.release(&uid),
                Err(error) => {
                    // Its addresses are kept from others as long as it may live.
                    tracing::error!(%uid, %error, "cannot end a sandbox that nobody knows");
                }
            }
            let directory = self.context.directories.of(&uid);
            let directories = self.context.directories.clone();
            let is_damaged = self.damaged.contains(&uid);
            let of = uid.clone();
            let removed = spawn_blocking(move || {
                // Whose they are does not matter for their removal.
                Volumes::new(&directory, VolumeOwner::current())
                    .tear_down()
                    .map_err(|error| Chain(&error).to_string())?;
                // A damaged checkpoint says at least that there was a pod.
                if is_damaged {
                    return Ok(());
                }
                directories.remove(&of).map_err(|error| Chain(&error).to_string())
            });
            if let Ok(Err(error)) = removed.await {
                tracing::error!(%uid, error, "cannot remove what is left of a pod");
            }
        }
    }
}
