//! Prints the logs of pods in the foreground: each run of a container once and
//! whole, and the runs of one container one after the other.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _, Write as _},
};

use anyhow::{Context as _, Result, bail};
use http::Method;
use krustlet_model::{Chain, PodKey};
use tokio::{
    io::AsyncWriteExt as _,
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use super::{follow::RunLog, manifest::Bundle};
use crate::{
    client::{self, Local},
    output::{self, Prefixer},
};

/// Pieces of logs that wait to be written.
const PIECES: usize = 16;

/// Prints logs to standard output.
#[derive(Debug)]
pub(super) struct Printer {
    local: Local,
    out: mpsc::Sender<Vec<u8>>,
    writer: JoinSet<io::Result<()>>,
    prefixes: Prefixes,
    /// Dropped when the newest run's log of a container has been printed.
    printed: BTreeMap<(PodKey, String), oneshot::Receiver<()>>,
    logs: JoinSet<Result<()>>,
}

impl Printer {
    /// Prints logs of this agent's pods, with the prefixes that the bundle asks for.
    pub(super) fn new(local: Local, bundle: &Bundle) -> Self {
        let prefixes = Prefixes::new(bundle);
        let (out, pieces) = mpsc::channel(PIECES);
        let mut writer = JoinSet::new();
        writer.spawn(write(pieces));
        Self { local, out, writer, prefixes, printed: BTreeMap::new(), logs: JoinSet::new() }
    }

    /// Prints a run's log until it ends. That of a later run of the container
    /// waits until this one has been printed.
    pub(super) fn begin(&mut self, run: RunLog) {
        let (done, printed) = oneshot::channel();
        let before = self.printed.insert((run.pod.clone(), run.container.clone()), printed);
        let prefixer = self.prefixes.prefixer(&run.pod, &run.container);
        let (local, out) = (self.local.clone(), self.out.clone());
        self.logs.spawn(async move {
            let result = print(local, &run, before, prefixer, out).await;
            drop(done);
            result
        });
    }

    /// Waits until everything has been printed.
    pub(super) async fn finish(mut self) {
        while let Some(printed) = self.logs.join_next().await {
            match printed {
                Ok(Ok(())) => {}
                Ok(Err(error)) => say(&Chain(error.as_ref()).to_string()),
                Err(error) => say(&format!("a log was not printed whole: {error}")),
            }
        }
        drop(self.out);
        if let Some(Ok(Err(error))) = self.writer.join_next().await {
            say(&format!("cannot write to standard output: {error}"));
        }
    }
}

/// Writes what comes. One for all logs: each write takes a thread, and a reader
/// that pauses must neither hold up the agent in this process nor take all of
/// its threads.
async fn write(mut pieces: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    let mut stdout = tokio::io::stdout();
    while let Some(piece) = pieces.recv().await {
        stdout.write_all(&piece).await?;
        stdout.flush().await?;
    }
    Ok(())
}

async fn print(
    local: Local,
    run: &RunLog,
    before: Option<oneshot::Receiver<()>>,
    mut prefixer: Prefixer,
    out: mpsc::Sender<Vec<u8>>,
) -> Result<()> {
    let path = client::path(&["logs", &run.pod.namespace, &run.pod.name, &run.container]);
    let path = format!("{path}?follow=true&restarts={}", run.restarts);
    // Opened before its turn: the file is removed when the second run after
    // this one begins, and a reader may pause for as long as it likes.
    let log = local.send(Method::GET, &path, client::empty()).await;
    if let Some(before) = before {
        // Nothing is sent: it ends when the sender is dropped.
        let _ = before.await;
    }
    let lost = || {
        let RunLog { pod, container, restarts } = run;
        format!("cannot print the log of container {container} of pod {pod}, restart {restarts}")
    };
    let mut log = log.with_context(lost)?;
    loop {
        let piece = log.piece().await.with_context(lost)?;
        let is_over = piece.is_none();
        let text = match piece {
            Some(piece) => prefixer.apply(&piece),
            None => prefixer.end_line().to_vec(),
        };
        if out.send(text).await.is_err() {
            // What the system said of it is said once, for all logs.
            bail!("{}: nobody reads it", lost());
        }
        if is_over {
            return Ok(());
        }
    }
}

/// Says something besides the logs.
pub(super) fn say(text: &str) {
    // Standard error may be closed; the pods matter more.
    let _ = writeln!(io::stderr(), "krustlet: {text}");
}

/// Says what only a person who waits wants to know.
pub(super) fn say_progress(text: &str) {
    if output::shows_progress() {
        say(text);
    }
}

/// What stands before each line of a log.
#[derive(Debug)]
struct Prefixes {
    /// The number of each container, in the order of the manifests.
    numbers: BTreeMap<(PodKey, String), usize>,
    several_pods: bool,
    colours: bool,
}

impl Prefixes {
    fn new(bundle: &Bundle) -> Self {
        let mut numbers = BTreeMap::new();
        for pod in &bundle.pods {
            let key = PodKey::new(
                pod.metadata.namespace.clone().unwrap_or_default(),
                pod.metadata.name.clone().unwrap_or_default(),
            );
            let spec = pod.spec.as_ref();
            let init = spec.and_then(|spec| spec.init_containers.as_ref());
            let all = init.into_iter().flatten();
            for container in all.chain(spec.into_iter().flat_map(|spec| &spec.containers)) {
                let index = numbers.len();
                numbers.insert((key.clone(), container.name.clone()), index);
            }
        }
        let colours = io::stdout().is_terminal() && output::wants_colours();
        Self { numbers, several_pods: bundle.pods.len() > 1, colours }
    }

    fn prefixer(&self, pod: &PodKey, container: &str) -> Prefixer {
        let index = self.numbers.get(&(pod.clone(), container.to_owned())).copied().unwrap_or(0);
        let name = if self.several_pods {
            Some(format!("{}/{container}", pod.name))
        } else {
            (self.numbers.len() > 1).then(|| container.to_owned())
        };
        Prefixer::new(name.as_deref(), index, self.colours)
    }
}
