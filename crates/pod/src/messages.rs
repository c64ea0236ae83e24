//! Reading the termination messages of runs that have ended: their files and,
//! where the policy asks for it, the ends of their logs. What is told of them is
//! a rule of `krustlet_model::termination`.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::Container;
use krustlet_model::{
    Chain, ContainerId, PodUid,
    observed::{ContainerObserved, ContainerState},
    restarts,
    status::MAX_TERMINATION_MESSAGE,
    termination::{self, MessagePolicy, Written},
};
use krustlet_protocol::RunState;
use krustlet_volume::{MessagePlace, MessageRun, Volumes};

use crate::{
    checkpoint::{Checkpoint, ContainerNote},
    config::Context,
    outside::Adopted,
    worker::key_of,
};

/// What runs have left to be read.
pub(crate) type Said = BTreeMap<ContainerId, Written>;

/// A run whose message is to be read.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) id: ContainerId,
    container: String,
    restart: u32,
    path: String,
    place: MessagePlace,
    /// Its log, if the policy falls back to it.
    log: Option<PathBuf>,
}

impl Ask {
    /// Asks for the newest run of a container; none if there was none.
    pub(crate) fn of(
        container: &Container,
        seen: &ContainerObserved,
        place: &MessagePlace,
        log: impl FnOnce() -> PathBuf,
    ) -> Option<Self> {
        let falls_back = MessagePolicy::of(container) == MessagePolicy::FallbackToLogsOnError;
        Some(Self {
            id: seen.id.clone()?,
            container: container.name.clone(),
            restart: seen.restart_count,
            path: termination::path(container),
            place: place.clone(),
            log: falls_back.then(log),
        })
    }
}

/// Reads what the runs left. Never fails: what cannot be read is told as the
/// message, as a kubelet does it. Blocks.
///
/// Source of the sentences: kubelet, `getTerminationMessage` and
/// `readLastStringFromContainerLogs` in
/// `pkg/kubelet/kuberuntime/kuberuntime_container.go`.
pub(crate) fn read(volumes: &Volumes, asks: Vec<Ask>) -> Said {
    let mut said = Said::new();
    for ask in asks {
        let run = MessageRun { container: &ask.container, restart: ask.restart, path: &ask.path };
        let file = match volumes.message(&run, &ask.place, MAX_TERMINATION_MESSAGE as u64) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => {
                format!("Error on reading termination log {}: {}", ask.path, Chain(&error))
            }
        };
        let log = ask.log.map(|path| match end_of(&path) {
            Ok(window) => termination::log_tail(&window),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                format!("Error on reading termination message from logs: {}", Chain(&error))
            }
        });
        said.insert(ask.id, Written { file, log: log.unwrap_or_default() });
    }
    said
}

/// What is to be read for a pod that an earlier agent left: the messages of all
/// runs whose ends are not known to its checkpoint and which do not run any more.
pub(crate) fn left(
    context: &Context,
    checkpoint: &Checkpoint,
    adopted: Option<&Adopted>,
) -> Vec<Ask> {
    let pod = &checkpoint.pod;
    let (key, logs) = (key_of(pod), &context.config.logs);
    let uid = PodUid::new(pod.metadata.uid.clone().unwrap_or_default());
    let runs = |id: &ContainerId| {
        adopted.filter(|adopted| adopted.alive).is_some_and(|adopted| {
            adopted
                .containers
                .iter()
                .any(|report| report.id == *id && !matches!(report.state, RunState::Exited(_)))
        })
    };
    let is_open = |seen: &ContainerObserved, note: &ContainerNote| {
        let is_shown = !matches!(seen.state, ContainerState::Running { .. });
        !(note.has_ended && is_shown) && seen.id.as_ref().is_some_and(|id| !runs(id))
    };
    let observed = checkpoint.observed.containers.iter().zip(&checkpoint.containers);
    observed
        .filter(|(seen, note)| is_open(seen, note))
        .filter_map(|(seen, note)| {
            let (_, container) =
                restarts::containers(pod).find(|(_, of)| of.name == seen.name.as_str())?;
            Ask::of(container, seen, &note.message, || {
                logs.run(&key, &uid, &seen.name, seen.restart_count)
            })
        })
        .collect()
}

fn end_of(path: &Path) -> io::Result<Vec<u8>> {
    const WINDOW: u64 = termination::LOG_WINDOW as u64;
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(WINDOW)))?;
    let mut bytes = Vec::new();
    file.take(WINDOW).read_to_end(&mut bytes)?;
    Ok(bytes)
}
