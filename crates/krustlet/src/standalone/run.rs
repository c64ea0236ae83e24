//! `krustlet run`: pods in the foreground, with their logs, or in the
//! background.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _},
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail};
use futures::future;
use http::Method;
use krustlet_model::{Chain, PodKey};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::{JoinSet, spawn_blocking},
};
use tokio_util::sync::CancellationToken;

use super::{
    agent::{self, Agent},
    follow::{Following, Todo},
    manifest::Bundle,
    target,
    world::News,
};
use crate::{
    app::core::until_signal,
    cli::RunArgs,
    client::{self, Answer, Local},
    output::{self, Prefixer},
    paths::Root,
};

/// Runs what the command line asks for. The exit code is the container's.
pub(crate) async fn run(args: RunArgs) -> Result<ExitCode> {
    // What is wrong with the manifest is said before anything is started.
    let bundle = target::resolve(&args.target, args.args.clone())?;
    let root = Root::new(args.root.root_dir.clone());
    root.create().with_context(|| format!("cannot make {}", root.path().display()))?;
    let local = Local::new(root.socket());
    if args.detach {
        start_in_background(&args, &root).await?;
        for key in apply(&local, &bundle).await? {
            writeln!(io::stdout(), "pod/{} started in namespace {}", key.name, key.namespace)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let Some(lock) = root.lock()? else {
        return foreground(&local, &bundle).await;
    };
    let registries = args.registry.registry_config.as_deref();
    let agent = Agent::start(root, lock, registries, &args.pod_cidr).await?;
    let stop = CancellationToken::new();
    let mut sets = agent.sets();
    let pods = async {
        let code = foreground(&local, &bundle).await;
        // Another `krustlet run` may have found this agent and trust in it.
        if !sets.borrow().pods.is_empty() {
            say(
                "pods that were started beside this one still run; Ctrl-C leaves them to the next agent",
                false,
            );
            let signal = until_signal();
            let empty = sets.wait_for(|set| set.pods.is_empty());
            if let Ok(signal) = signal {
                tokio::select! {
                    // Both are cancel-safe.
                    _ = empty => {}
                    () = signal => {}
                }
            }
        }
        stop.cancel();
        code
    };
    let (code, agent) = future::join(pods, agent.run(stop.clone())).await;
    agent?;
    code
}

async fn apply(local: &Local, bundle: &Bundle) -> Result<Vec<PodKey>> {
    let answer = local.post("/v1/apply", bundle).await?;
    serde_json::from_slice(&answer).context("the agent's answer makes no sense")
}

/// Starts an agent of its own session if none is there, and waits until its
/// socket answers.
async fn start_in_background(args: &RunArgs, root: &Root) -> Result<()> {
    if Local::new(root.socket()).is_there().await {
        return Ok(());
    }
    let log = File::options().create(true).append(true).open(root.agent_log())?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("agent").arg("--root-dir").arg(root.path());
    if let Some(file) = &args.registry.registry_config {
        command.arg("--registry-config").arg(file.canonicalize()?);
    }
    for range in &args.pod_cidr.pod_cidr {
        command.arg("--pod-cidr").arg(range);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).process_group(0);
    let mut child = command.spawn().context("cannot start an agent")?;
    let stdout = child.stdout.take().context("the agent has no output")?;
    let line = spawn_blocking(move || {
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).map(|_| line)
    });
    if line.await??.trim() != agent::READY {
        bail!("the agent did not start; {} says why", root.agent_log().display());
    }
    Ok(())
}

async fn foreground(local: &Local, bundle: &Bundle) -> Result<ExitCode> {
    // The watch comes first, so that no event is missed.
    let news = local.send(Method::GET, "/v1/watch", client::empty()).await?;
    let keys = apply(local, bundle).await?;
    let prefixes = Prefixes::new(bundle);
    let followed = follow(local, news, &keys, &prefixes).await;
    // Whatever happened, nothing is left behind.
    for key in &keys {
        if let Err(error) = stop(local, key, None).await {
            tracing::debug!(%error, "the pod is gone already");
        }
    }
    let code = followed?;
    Ok(ExitCode::from(code.to_le_bytes()[0]))
}

async fn stop(local: &Local, key: &PodKey, grace: Option<u64>) -> Result<()> {
    let mut path = client::path(&["stop", &key.namespace, &key.name]);
    if let Some(seconds) = grace {
        path = format!("{path}?grace={seconds}");
    }
    local.send(Method::POST, &path, client::empty()).await?.whole().await?;
    Ok(())
}

/// Prints until every pod has ended; gives the exit code.
async fn follow(
    local: &Local,
    mut news: Answer,
    keys: &[PodKey],
    prefixes: &Prefixes,
) -> Result<i32> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut following = Following::new(keys);
    let mut lines = Vec::new();
    let mut logs = JoinSet::new();
    let mut stops = JoinSet::new();
    let mut interrupts = 0;
    while !following.is_over() {
        tokio::select! {
            // All are cancel-safe: a piece of news is taken whole or not.
            piece = news.piece() => {
                let Some(piece) = piece? else { bail!("the agent went away") };
                lines.extend_from_slice(&piece);
                while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = lines.drain(..=end).collect();
                    let heard: News = serde_json::from_slice(&line)?;
                    for todo in following.hear(&heard) {
                        match todo {
                            Todo::FollowLog { pod, container } => {
                                let prefix = prefixes.prefixer(&pod, &container);
                                logs.spawn(print_log(local.clone(), pod, container, prefix));
                            }
                            Todo::Say { text, is_progress } => say(&text, is_progress),
                        }
                    }
                }
            }
            () = either(&mut interrupt, &mut terminate) => {
                interrupts += 1;
                if interrupts == 1 {
                    say("stopping; press Ctrl-C again to end at once", true);
                }
                // The first asks the pods to end, a second one does not wait.
                let grace = (interrupts > 1).then_some(0);
                for key in following.waiting() {
                    let (local, key) = (local.clone(), key.clone());
                    stops.spawn(async move { stop(&local, &key, grace).await });
                }
            }
            Some(stopped) = stops.join_next() => {
                if let Ok(Err(error)) = stopped {
                    let error: anyhow::Error = error;
                    say(&Chain(error.as_ref()).to_string(), false);
                }
            }
        }
    }
    // What was written before the end is printed before we end.
    while let Some(printed) = logs.join_next().await {
        if let Ok(Err(error)) = printed {
            let error: anyhow::Error = error;
            tracing::debug!(error = %Chain(error.as_ref()), "a log ended early");
        }
    }
    Ok(following.exit_code())
}

/// Waits for one of two signals.
async fn either(one: &mut Signal, other: &mut Signal) {
    tokio::select! {
        // Both are cancel-safe.
        _ = one.recv() => {}
        _ = other.recv() => {}
    }
}

async fn print_log(
    local: Local,
    pod: PodKey,
    container: String,
    mut prefixer: Prefixer,
) -> Result<()> {
    let path = client::path(&["logs", &pod.namespace, &pod.name, &container]);
    let mut log = local.send(Method::GET, &format!("{path}?follow=true"), client::empty()).await?;
    while let Some(piece) = log.piece().await? {
        let mut stdout = io::stdout().lock();
        stdout.write_all(&prefixer.apply(&piece))?;
        stdout.flush()?;
    }
    Ok(())
}

/// What stands before each line of a log.
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
        let colours = io::stdout().is_terminal() && output::is_fancy();
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

/// Says something besides the logs; progress only on a terminal.
fn say(text: &str, is_progress: bool) {
    if !is_progress || output::is_fancy() {
        // Standard error may be closed; the pods matter more.
        let _ = writeln!(io::stderr(), "krustlet: {text}");
    }
}
