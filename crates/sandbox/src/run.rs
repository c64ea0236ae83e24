//! One run of a program: a store, an instance, its entry, its end.

use std::sync::Arc;

use tokio::task::unconstrained;
use wasmtime::{AsContextMut, Engine, Store, UpdateDeadline};
use wasmtime_wasi::{
    I32Exit, WasiCtxBuilder,
    cli::{StdinStream, StdoutStream},
};

use crate::{
    container::Container,
    exit::Ending,
    files::ModuleFiles,
    p3, preview1,
    program::{Command, Program},
    state::{Budgeted, ComponentState, ModuleState, bound},
};

/// What an instance reads and writes, and how it is called.
pub(crate) struct Session {
    pub(crate) args: Vec<String>,
    /// Empty if there is none.
    pub(crate) stdin: Option<Box<dyn StdinSource>>,
    pub(crate) stdout: Box<dyn StdoutSink>,
    pub(crate) stderr: Box<dyn StdoutSink>,
    /// Whether it finds listeners for the container's ports: one instance can.
    pub(crate) listens: bool,
}

/// A stream that can be given to an instance. (wasmtime's builder takes a type,
/// not a trait object.)
pub(crate) trait StdinSource: Send {
    fn give(self: Box<Self>, wasi: &mut WasiCtxBuilder);
}

impl<S: StdinStream + 'static> StdinSource for S {
    fn give(self: Box<Self>, wasi: &mut WasiCtxBuilder) {
        wasi.stdin(*self);
    }
}

/// See [`StdinSource`].
pub(crate) trait StdoutSink: Send {
    fn give_stdout(self: Box<Self>, wasi: &mut WasiCtxBuilder);
    fn give_stderr(self: Box<Self>, wasi: &mut WasiCtxBuilder);
}

impl<S: StdoutStream + 'static> StdoutSink for S {
    fn give_stdout(self: Box<Self>, wasi: &mut WasiCtxBuilder) {
        wasi.stdout(*self);
    }

    fn give_stderr(self: Box<Self>, wasi: &mut WasiCtxBuilder) {
        wasi.stderr(*self);
    }
}

impl Session {
    /// What an instance of `container` sees of the world.
    pub(crate) fn wasi(self, container: &Container) -> wasmtime::Result<WasiCtxBuilder> {
        let mut wasi = container.wasi()?;
        wasi.args(&self.args);
        if let Some(stdin) = self.stdin {
            stdin.give(&mut wasi);
        }
        self.stdout.give_stdout(&mut wasi);
        self.stderr.give_stderr(&mut wasi);
        Ok(wasi)
    }
}

/// Runs the container's program to its end. `entered` is called when the
/// guest's first function is.
///
/// It yields by its epochs and not by tokio's budget, by which the last of many
/// sockets would never be heard of.
pub(crate) async fn run(
    container: &Container,
    session: Session,
    entered: impl FnMut() + Send + Sync + 'static,
) -> Ending {
    let listens = session.listens;
    let wasi = session.wasi(container);
    match (&*container.program, wasi) {
        (_, Err(error)) => Ending::not_started(&format!("{error:#}")),
        (Program::Module { linked, export }, Ok(mut wasi)) => {
            let opened = if listens {
                match preview1::open(container, linked.module()) {
                    Ok(opened) => opened,
                    Err(why) => return Ending::not_started(&why),
                }
            } else {
                preview1::Opened::default()
            };
            for (name, value) in &opened.env {
                wasi.env(name, value);
            }
            let state = ModuleState {
                wasi: wasi.build_p1(),
                sockets: opened.table,
                files: ModuleFiles::new(container.spec.preopens.len()),
                budget: container.budget(),
            };
            let mut run = Run::new(linked.module().engine(), state, entered);
            let result = unconstrained(run_module(&mut run.store, linked, export)).await;
            run.end(result)
        }
        (Program::Command(command), Ok(mut wasi)) => {
            let state = ComponentState::of(wasi.build(), container, None);
            let mut run = Run::new(command.engine(), state, entered);
            let result = match command {
                Command::P2(command) => unconstrained(run_command(&mut run.store, command)).await,
                Command::P3(command) => unconstrained(p3::run(&mut run.store, command)).await,
            };
            run.end(result)
        }
        (Program::Http(_), Ok(_)) => {
            Ending::not_started("an http program has no command to run; it answers requests")
        }
    }
}

async fn run_module(
    store: &mut Store<ModuleState>,
    linked: &wasmtime::InstancePre<ModuleState>,
    export: &str,
) -> wasmtime::Result<()> {
    let instance = linked.instantiate_async(&mut *store).await?;
    // A library made ready for calls; a command's `_start` does so itself.
    if export != "_start"
        && let Ok(initialize) = instance.get_typed_func::<(), ()>(&mut *store, "_initialize")
    {
        initialize.call_async(&mut *store, ()).await?;
    }
    let entry = instance.get_typed_func::<(), ()>(&mut *store, export)?;
    entry.call_async(store.as_context_mut(), ()).await
}

async fn run_command(
    store: &mut Store<ComponentState>,
    command: &wasmtime_wasi::p2::bindings::CommandPre<ComponentState>,
) -> wasmtime::Result<()> {
    let instance = command.instantiate_async(&mut *store).await?;
    match instance.wasi_cli_run().call_run(&mut *store).await? {
        Ok(()) => Ok(()),
        Err(()) => Err(I32Exit(1).into()),
    }
}

/// A store and whether its guest has been entered.
struct Run<T: 'static> {
    store: Store<T>,
    entered: Arc<std::sync::atomic::AtomicBool>,
}

impl<T: Budgeted> Run<T> {
    fn new(engine: &Engine, state: T, mut entered: impl FnMut() + Send + Sync + 'static) -> Self {
        let flag = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let set = Arc::clone(&flag);
        let store = store(engine, state, move || {
            set.store(true, std::sync::atomic::Ordering::Relaxed);
            entered();
        });
        Self { store, entered: flag }
    }

    fn end(mut self, result: wasmtime::Result<()>) -> Ending {
        let entered = self.entered.load(std::sync::atomic::Ordering::Relaxed);
        Ending::of(result, self.store.data_mut().budget().denied(), entered)
    }
}

/// A store whose guest yields at each epoch, so that whoever polls it can drop
/// it. The first check comes with the first function entered: then `entered` is
/// called.
pub(crate) fn store<T: Budgeted>(
    engine: &Engine,
    state: T,
    mut entered: impl FnMut() + Send + Sync + 'static,
) -> Store<T> {
    let mut store = Store::new(engine, state);
    bound(&mut store);
    store.limiter(|state| state.budget());
    store.set_epoch_deadline(0);
    let mut first = true;
    store.epoch_deadline_callback(move |_| {
        if std::mem::take(&mut first) {
            entered();
            return Ok(UpdateDeadline::Continue(1));
        }
        // tokio's own, which lets timers and sockets have their turn.
        Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
    });
    store
}
