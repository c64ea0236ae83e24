//! What all pods use: each sandbox is asked once, however many pods are in it.

use std::{collections::HashMap, sync::Arc};

use krustlet_model::{Chain, PodUid};
use krustlet_protocol::StatsReport;
use tokio::task::JoinSet;

use crate::sandbox::Sandbox;

/// What the containers of each pod use.
pub type Stats = HashMap<PodUid, Vec<StatsReport>>;

/// Sandboxes that are asked at one time.
const AT_ONCE: usize = 16;

/// Asks sandboxes about the pods that are in them. Those of one that does not
/// answer are left out.
pub(crate) async fn ask_all(members: Vec<(Arc<Sandbox>, Vec<PodUid>)>) -> Stats {
    let mut members = members.into_iter();
    let mut asked = JoinSet::new();
    let mut all = Stats::new();
    loop {
        while asked.len() < AT_ONCE
            && let Some((sandbox, pods)) = members.next()
        {
            asked.spawn(async move { sandbox.stats(pods).await });
        }
        match asked.join_next().await {
            Some(Ok(Ok(found))) => all.extend(found),
            Some(Ok(Err(error))) => {
                tracing::debug!(error = %Chain(&error), "a sandbox does not say what it uses");
            }
            Some(Err(error)) => tracing::error!(%error, "a sandbox was not asked what it uses"),
            None => return all,
        }
    }
}
