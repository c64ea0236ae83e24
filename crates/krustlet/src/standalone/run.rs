//! `krustlet run`: pods in the foreground, with their logs, or in the
//! background.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use futures::future;
use http::Method;
use krustlet_model::{Chain, PodKey};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::{JoinSet, spawn_blocking},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    agent::{self, Agent},
    follow::{Following, Todo},
    manifest::Bundle,
    print::{Printer, say, say_progress},
    target,
    wishes::Wishes,
    world::{News, World},
};
use crate::{
    app::core::until_signal,
    cli::RunArgs,
    client::{self, Answer, Local},
    paths::Root,
};

/// The wait before an agent that is about to end is looked at again: it has to
/// end its zygote first.
const PAUSE: Duration = Duration::from_millis(20);

/// Runs what the command line asks for. The exit code is the container's.
pub(crate) async fn run(args: RunArgs) -> Result<ExitCode> {
    // What is wrong with the manifest is said before anything is started.
    let mut bundle = target::resolve(&args.target, args.args.clone())?;
    bundle.wishes = Wishes::new(&args.pod_cidr, &args.registry)?;
    let root = Root::new(args.root.root_dir.clone());
    root.create().with_context(|| format!("cannot make {}", root.path().display()))?;
    let local = Local::new(root.socket());
    if args.detach {
        for key in apply_in_background(&local, &root, &bundle).await? {
            writeln!(io::stdout(), "pod/{} started in namespace {}", key.name, key.namespace)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let lock = loop {
        if let Some(lock) = local.or_lock(&root).await? {
            break lock;
        }
        let mut interrupts = Interrupts::new()?;
        match foreground(&local, &bundle, &mut interrupts).await {
            Err(error) if client::is_ending(&error) => tokio::select! {
                // Both are cancel-safe.
                () = sleep(PAUSE) => {}
                () = interrupts.next() => return Err(Interrupted.into()),
            },
            ended => return ended,
        }
    };
    let agent = Agent::start(root, lock, bundle.wishes.clone()).await?;
    let stop = CancellationToken::new();
    let world = agent.world();
    let pods = async {
        let code = match Interrupts::new() {
            Ok(mut interrupts) => foreground(&local, &bundle, &mut interrupts).await,
            Err(error) => Err(error.into()),
        };
        // Another `krustlet run` may have found this agent and trust in it.
        if !world.close_if_empty() {
            say(
                "pods that were started beside this one still run; Ctrl-C leaves them to the next agent",
            );
            outlast(&world).await;
        }
        stop.cancel();
        code
    };
    let (code, agent) = future::join(pods, agent.run(stop.clone())).await;
    agent?;
    code
}

/// Waits until the last pod is gone or a signal comes; no pod is taken then.
async fn outlast(world: &World) {
    let mut sets = world.sets();
    let gone = async {
        while !world.close_if_empty() && sets.wait_for(|set| set.pods.is_empty()).await.is_ok() {}
    };
    let Ok(signal) = until_signal() else { return world.close() };
    tokio::select! {
        // Both are cancel-safe.
        () = gone => {}
        () = signal => world.close(),
    }
}

/// Gives the pods to the agent of the directory, which is started if there is none.
async fn apply_in_background(local: &Local, root: &Root, bundle: &Bundle) -> Result<Vec<PodKey>> {
    loop {
        if let Some(lock) = local.or_lock(root).await? {
            // The agent is to have it.
            drop(lock);
            start_in_background(&bundle.wishes, root).await?;
        }
        match apply(local, bundle).await {
            Err(error) if client::is_ending(&error) => sleep(PAUSE).await,
            applied => return applied,
        }
    }
}

async fn apply(local: &Local, bundle: &Bundle) -> Result<Vec<PodKey>> {
    let answer = local.post("/v1/apply", bundle).await?;
    client::read(&answer)
}

/// Starts an agent of its own session, and waits until its socket answers.
async fn start_in_background(wishes: &Wishes, root: &Root) -> Result<()> {
    let log = File::options().create(true).append(true).open(root.agent_log())?;
    let mut command = Command::new("/proc/self/exe");
    command.arg("agent").arg("--root-dir").arg(root.path());
    if let Some(file) = &wishes.registry_config {
        command.arg("--registry-config").arg(file);
    }
    for range in &wishes.pod_cidr {
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

/// It was interrupted before there was a pod to stop.
#[derive(Debug, thiserror::Error)]
#[error("interrupted before the pods were taken")]
struct Interrupted;

async fn foreground(
    local: &Local,
    bundle: &Bundle,
    interrupts: &mut Interrupts,
) -> Result<ExitCode> {
    let taken = async {
        // The watch comes first, so that no event is missed.
        let news = local.send(Method::GET, "/v1/watch", client::empty()).await?;
        let keys = apply(local, bundle).await?;
        Ok::<_, anyhow::Error>((news, keys))
    };
    let (news, keys) = tokio::select! {
        // Both are cancel-safe, if not for the pods: what the agent has taken by
        // then is its own to keep.
        taken = taken => taken?,
        () = interrupts.next() => return Err(Interrupted.into()),
    };
    let printer = Printer::new(local.clone(), bundle);
    let followed = follow(local, news, &keys, printer, interrupts).await;
    // Whatever happened, nothing is left behind.
    leave_nothing(local, &keys, interrupts).await;
    let code = followed?;
    Ok(ExitCode::from(code.to_le_bytes()[0]))
}

/// Stops what is still there. An interrupt takes the pods their grace period,
/// another one ends the wait: the agent ends them without us.
async fn leave_nothing(local: &Local, keys: &[PodKey], interrupts: &mut Interrupts) {
    for grace in [None, Some(0)] {
        let all = async {
            for key in keys {
                if let Err(error) = stop(local, key, grace).await {
                    tracing::debug!(%error, "the pod is gone already");
                }
            }
        };
        tokio::select! {
            // Both are cancel-safe: what was asked of the agent goes on there.
            () = all => return,
            () = interrupts.next() => {}
        }
    }
    say("not every pod was seen to end");
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
    mut printer: Printer,
    interrupts: &mut Interrupts,
) -> Result<i32> {
    let mut following = Following::new(keys);
    let mut lines = Vec::new();
    let mut stops = JoinSet::new();
    let mut count = 0;
    while !following.is_over() {
        tokio::select! {
            // All are cancel-safe: a piece of news is taken whole or not.
            piece = news.piece() => {
                let Some(piece) = piece? else { bail!("the agent went away") };
                lines.extend_from_slice(&piece);
                while let Some(end) = lines.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = lines.drain(..=end).collect();
                    let heard: News = client::read(&line)?;
                    for todo in following.hear(&heard) {
                        match todo {
                            Todo::Print(run) => printer.begin(run),
                            Todo::Say(text) => say(&text),
                            Todo::SayProgress(text) => say_progress(&text),
                        }
                    }
                }
            }
            () = interrupts.next() => {
                count += 1;
                if count == 1 {
                    say_progress("stopping; press Ctrl-C again to end at once");
                }
                // The first asks the pods to end, a second one does not wait.
                let grace = (count > 1).then_some(0);
                for key in following.waiting() {
                    let (local, key) = (local.clone(), key.clone());
                    stops.spawn(async move { stop(&local, &key, grace).await });
                }
            }
            Some(stopped) = stops.join_next() => {
                if let Ok(Err(error)) = stopped {
                    let error: anyhow::Error = error;
                    say(&Chain(error.as_ref()).to_string());
                }
            }
        }
    }
    // What was written before the end is printed before we end, unless nobody
    // reads it any more.
    tokio::select! {
        // Both are cancel-safe: what is not printed then, nobody wants.
        () = printer.finish() => {}
        () = interrupts.next() => say("the log was not printed whole"),
    }
    Ok(following.exit_code())
}

/// What people and service managers end a program with.
#[derive(Debug)]
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    fn new() -> io::Result<Self> {
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self { interrupt, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for the next one.
    async fn next(&mut self) {
        tokio::select! {
            // Both are cancel-safe.
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
