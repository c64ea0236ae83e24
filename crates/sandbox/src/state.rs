//! What a guest's store holds: its view of WASI, and what it may use.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    container::Container,
    files::{Files, ModuleFiles},
    net::Stack,
    outgoing::Hooks,
    preview1,
    sockets::SocketsView,
};
use krustlet_protocol::Limits;
use wasmtime::{
    ResourceLimiter, Store,
    component::{HasData, ResourceTable},
};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView, p1::WasiP1Ctx};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::bucket::Bucket;

/// Bytes of tables one instance may have where no memory limit counts them:
/// 8 million entries. A table is never larger than its module asks for, but
/// asking is free.
const TABLE_BYTES: u64 = 64 << 20;

/// Handles an instance may hold for each socket that its pod may have: itself, its
/// two streams, what it waits by for each of these, and two to spare. (wasi-libc of
/// wasi-sdk keeps all six for each connection.) wasmtime's default is a million
/// for all; each may be a body, a request or the fields of one.
pub(crate) const HANDLES_PER_SOCKET: usize = 8;

/// Handles, tasks and ends of streams, each, of an instance that answers requests, for
/// each request that it may answer at once: there may be many such instances.
pub(crate) const REQUEST_HANDLES: usize = 1024;

/// Handles an instance may number itself, of any kind, unless its pod's sockets
/// need more. wasmtime's default is a million.
const NUMBERS: usize = 100_000;

/// Bytes of fields that a guest makes, with what they take in memory.
pub(crate) const FIELDS: usize = 16 << 10;

/// Tasks, threads and ends of streams and futures one instance may have, unless its
/// pod's sockets need more. wasmtime's default is a million, and a task that waits
/// may hold a stack, which no memory limit counts.
const CONCURRENT: usize = 65_536;

/// Such places for each socket: a connection of WASI 0.3 takes some 12 of them.
const CONCURRENT_PER_SOCKET: usize = 16;

/// Bytes that a component may pass in one call. They are copied at once to where no
/// limit counts them, and a list may name the same ones many times: the largest
/// calls that there is a use for write a piece of a file. wasmtime's default is 128
/// MiB. (What a module passes lies in its memory once.)
const PASSED: usize = 16 << 20;

/// Random bytes that a component may draw in one call, or a module at once: some
/// ten milliseconds' worth, in which nobody else has the thread. wasmtime's default
/// is 64 MiB.
pub(crate) const DRAWN: u32 = 4 << 20;

/// What all instances of a container use together.
#[derive(Debug)]
pub(crate) struct Usage {
    /// Bytes of linear memory, tables, bodies and fields now.
    memory: AtomicU64,
    /// Processor time of its guests, in nanoseconds.
    cpu: AtomicU64,
    /// Bytes of the former that it may have; [`NO_LIMIT`] for any number.
    most_memory: AtomicU64,
    /// Thousandths of a core that it may use; 0 for any number.
    cpu_millis: AtomicU64,
    /// Its CPU limit, if it has one. Held for a few instructions only, by guests'
    /// threads and where the limit is changed.
    bucket: Mutex<Option<Bucket>>,
    /// Those that its components have open.
    files: Arc<Files>,
}

/// More than a container can have.
const NO_LIMIT: u64 = u64::MAX;

impl Usage {
    /// Nothing used yet.
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            memory: AtomicU64::new(0),
            cpu: AtomicU64::new(0),
            most_memory: AtomicU64::new(limits.memory_bytes.unwrap_or(NO_LIMIT)),
            cpu_millis: AtomicU64::new(limits.cpu_millis.unwrap_or(0)),
            bucket: Mutex::new(bucket(limits)),
            files: Arc::default(),
        }
    }

    /// Changes the limits. What waits for its share of the processor looks at
    /// the new one when its wait is over, which is within a second.
    ///
    /// # Errors
    ///
    /// The bytes that it has, if those are more than it may have; then nothing
    /// changes. (What grows meanwhile keeps what it got.)
    pub(crate) fn set_limits(&self, limits: &Limits) -> Result<(), u64> {
        let most = limits.memory_bytes.unwrap_or(NO_LIMIT);
        let used = self.memory();
        if used > most {
            return Err(used);
        }
        self.most_memory.store(most, Ordering::Relaxed);
        self.cpu_millis.store(limits.cpu_millis.unwrap_or(0), Ordering::Relaxed);
        let new = bucket(limits);
        let mut bucket = self.bucket();
        // What it owes under a limit that stays is not forgiven.
        let stays = matches!((&*bucket, &new), (Some(old), Some(new)) if old.is_like(new));
        if !stays {
            *bucket = new;
        }
        drop(bucket);
        Ok(())
    }

    fn bucket(&self) -> MutexGuard<'_, Option<Bucket>> {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that it may have; `None` for any number.
    fn most_memory(&self) -> Option<u64> {
        Some(self.most_memory.load(Ordering::Relaxed)).filter(|&most| most != NO_LIMIT)
    }

    /// Takes bytes that are kept for a guest in the sandbox's own memory, and maybe
    /// for longer than it lives. None if that were more than it may have.
    pub(crate) fn charge(self: &Arc<Self>, bytes: u64) -> Option<Charge> {
        self.take(bytes).ok()?;
        Some(Charge { usage: Arc::clone(self), bytes })
    }

    fn take(&self, more: u64) -> Result<(), Denied> {
        let before = self.memory.fetch_add(more, Ordering::Relaxed);
        let wanted = before.saturating_add(more);
        if let Some(limit) = self.most_memory().filter(|&limit| wanted > limit) {
            self.memory.fetch_sub(more, Ordering::Relaxed);
            return Err(Denied { wanted, limit, more });
        }
        Ok(())
    }

    pub(crate) fn memory(&self) -> u64 {
        self.memory.load(Ordering::Relaxed)
    }

    pub(crate) fn cpu(&self) -> u64 {
        self.cpu.load(Ordering::Relaxed)
    }

    /// Thousandths of a core that it may use; `None` for any number.
    pub(crate) fn cpu_limit(&self) -> Option<u64> {
        Some(self.cpu_millis.load(Ordering::Relaxed)).filter(|&millis| millis > 0)
    }

    pub(crate) fn charge_cpu(&self, nanoseconds: u64) {
        self.cpu.fetch_add(nanoseconds, Ordering::Relaxed);
        if let Some(bucket) = &mut *self.bucket() {
            bucket.charge(Instant::now(), nanoseconds);
        }
    }

    /// How long its guests must wait for having used more than their limit.
    pub(crate) fn cpu_wait(&self) -> Option<Duration> {
        self.bucket().as_mut()?.wait(Instant::now())
    }
}

fn bucket(limits: &Limits) -> Option<Bucket> {
    limits.cpu_millis.and_then(|millis| Bucket::of_cpu(millis, Instant::now()))
}

/// Growth that was refused, and nothing as large was granted since. (A program
/// that gives up still needs a little to say so.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Denied {
    /// Bytes the container would have had.
    pub(crate) wanted: u64,
    /// Bytes it may have.
    pub(crate) limit: u64,
    /// Bytes by which it wanted to grow.
    more: u64,
}

impl Denied {
    #[cfg(test)]
    pub(crate) const EXAMPLE: Self = Self { wanted: 2, limit: 1, more: 2 };
}

/// One instance's part of its container's [`Usage`]; given back when dropped.
#[derive(Debug)]
pub(crate) struct Budget {
    usage: Arc<Usage>,
    held: u64,
    tables: u64,
    /// The newest grant, which may still fail.
    granted: u64,
    denied: Option<Denied>,
}

impl Budget {
    /// Nothing used yet.
    pub(crate) fn new(usage: Arc<Usage>) -> Self {
        Self { usage, held: 0, tables: 0, granted: 0, denied: None }
    }

    pub(crate) fn denied(&self) -> Option<Denied> {
        self.denied
    }

    /// As [`Usage::charge`]; what is refused is known to be.
    pub(crate) fn charge(&mut self, bytes: u64) -> Option<Charge> {
        self.take(bytes).then(|| Charge { usage: Arc::clone(&self.usage), bytes })
    }

    fn grow(&mut self, more: u64) -> bool {
        let is_granted = self.take(more);
        if is_granted {
            self.held += more;
            self.granted = more;
        }
        is_granted
    }

    fn take(&mut self, more: u64) -> bool {
        if let Err(denied) = self.usage.take(more) {
            self.denied = Some(denied);
            return false;
        }
        self.denied = self.denied.filter(|denied| more < denied.more);
        true
    }

    /// The system refused what the budget had granted.
    fn undo(&mut self) {
        let granted = std::mem::take(&mut self.granted);
        self.held -= granted;
        self.usage.memory.fetch_sub(granted, Ordering::Relaxed);
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        self.usage.memory.fetch_sub(self.held, Ordering::Relaxed);
    }
}

/// Some of a container's memory; given back when dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    usage: Arc<Usage>,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.usage.memory.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl ResourceLimiter for Budget {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // Past its own maximum the guest hits no limit of ours.
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        Ok(self.grow(desired.saturating_sub(current) as u64))
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.undo();
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        // An entry is a pointer.
        let more = (desired.saturating_sub(current) as u64).saturating_mul(8);
        if self.tables.saturating_add(more) > TABLE_BYTES || !self.grow(more) {
            return Ok(false);
        }
        self.tables += more;
        Ok(true)
    }

    fn table_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.tables = self.tables.saturating_sub(self.granted);
        self.undo();
        Ok(())
    }
}

/// A store's data, whatever the kind of guest.
pub(crate) trait Budgeted: Send + 'static {
    fn budget(&mut self) -> &mut Budget;

    /// Handles, tasks and ends of streams, each, that it may have, if it is one of
    /// many instances.
    fn most_handles(&self) -> Option<usize> {
        None
    }

    /// Sockets that its pod may have, where these are handles.
    fn most_sockets(&self) -> usize {
        0
    }

    /// Bytes that its guest may pass in one call, if that is bounded here.
    fn most_passed(&self) -> Option<usize> {
        None
    }
}

/// Bounds what wasmtime itself keeps for an instance.
pub(crate) fn bound<T: Budgeted>(store: &mut Store<T>) {
    let (most, sockets) = (store.data().most_handles(), store.data().most_sockets());
    let all = |least: usize, each| most.unwrap_or(least.max(sockets.saturating_mul(each)));
    store.set_max_component_handles(all(NUMBERS, HANDLES_PER_SOCKET));
    if let Some(most) = store.data().most_passed() {
        store.set_hostcall_fuel(most);
    }
    if let Some(table) = store.concurrent_resource_table() {
        table.set_max_capacity(all(CONCURRENT, CONCURRENT_PER_SOCKET));
    }
}

/// The data of a core module's store.
pub(crate) struct ModuleState {
    pub(crate) wasi: WasiP1Ctx,
    /// Its sockets, which wasmtime does not have.
    pub(crate) sockets: preview1::Table,
    pub(crate) files: ModuleFiles,
    pub(crate) budget: Budget,
}

impl Budgeted for ModuleState {
    fn budget(&mut self) -> &mut Budget {
        &mut self.budget
    }
}

/// The data of a component's store.
pub(crate) struct ComponentState {
    wasi: WasiCtx,
    table: ResourceTable,
    http: WasiHttpCtx,
    outgoing: Hooks,
    budget: Budget,
    stack: Stack,
    most_handles: Option<usize>,
}

impl ComponentState {
    /// One of a container's, which may hold `most` handles; if none, so many as its
    /// pod's sockets need.
    pub(crate) fn of(wasi: WasiCtx, container: &Container, most: Option<usize>) -> Self {
        let outgoing = Hooks::new(container.stack.clone(), Arc::clone(&container.whose));
        Self::new(wasi, container.budget(), outgoing, most)
    }

    /// As [`of`](Self::of), of what it takes of the container.
    pub(crate) fn new(wasi: WasiCtx, budget: Budget, outgoing: Hooks, most: Option<usize>) -> Self {
        let stack = outgoing.stack().clone();
        let sockets = sockets_of(&stack);
        let all = sockets.saturating_mul(HANDLES_PER_SOCKET).max(REQUEST_HANDLES);
        let mut table = ResourceTable::new();
        table.set_max_capacity(most.unwrap_or(all).min(all));
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(FIELDS);
        Self { wasi, table, http, outgoing, budget, stack, most_handles: most }
    }

    /// What all instances of its container use.
    pub(crate) fn usage(&self) -> Arc<Usage> {
        Arc::clone(&self.budget.usage)
    }

    /// Those that all instances of its container have open.
    pub(crate) fn files(&self) -> Arc<Files> {
        Arc::clone(&self.budget.usage.files)
    }

    /// What calls of `wasi:sockets` work with.
    pub(crate) fn sockets(&mut self) -> SocketsView<'_> {
        SocketsView { stack: &self.stack, table: &mut self.table, usage: &self.budget.usage }
    }
}

impl Budgeted for ComponentState {
    fn budget(&mut self) -> &mut Budget {
        &mut self.budget
    }

    fn most_handles(&self) -> Option<usize> {
        self.most_handles
    }

    fn most_sockets(&self) -> usize {
        sockets_of(&self.stack)
    }

    fn most_passed(&self) -> Option<usize> {
        Some(PASSED)
    }
}

fn sockets_of(stack: &Stack) -> usize {
    usize::try_from(stack.network().limits.sockets).unwrap_or(usize::MAX)
}

impl WasiView for ComponentState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for ComponentState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.outgoing, table: &mut self.table, ctx: &mut self.http }
    }
}

impl HasData for ComponentState {
    type Data<'a> = &'a mut Self;
}

#[cfg(test)]
mod tests {
    use krustlet_protocol::{PodNetwork, SocketLimits};
    use proptest::prelude::*;

    use super::*;
    use crate::outgoing::Whose;

    fn memory(bytes: u64) -> Limits {
        Limits { memory_bytes: Some(bytes), cpu_millis: None }
    }

    #[test]
    fn another_limit_holds_at_once_unless_more_is_used() {
        let usage = Arc::new(Usage::new(&memory(100)));
        let mut budget = Budget::new(Arc::clone(&usage));
        let mut grow = |more| budget.memory_growing(0, more, None).unwrap();
        assert!(grow(80) && !grow(80));
        assert_eq!(usage.set_limits(&memory(200)), Ok(()));
        assert!(grow(80) && !grow(80));
        assert_eq!(usage.set_limits(&memory(159)), Err(160));
        assert!(grow(40), "nothing has changed");
        assert_eq!(usage.set_limits(&Limits::default()), Ok(()));
        assert!(grow(1 << 30));
    }

    #[test]
    fn another_cpu_limit_holds_at_once() {
        let cpu = |millis| Limits { memory_bytes: None, cpu_millis: Some(millis) };
        let usage = Usage::new(&Limits::default());
        usage.charge_cpu(1 << 40);
        assert_eq!(usage.cpu_wait(), None);
        usage.set_limits(&cpu(10)).unwrap();
        assert_eq!(usage.cpu_wait(), None, "what was used before is its own");
        usage.charge_cpu(1 << 40);
        assert!(usage.cpu_wait().is_some());
        usage.set_limits(&Limits { memory_bytes: Some(1 << 20), ..cpu(10) }).unwrap();
        assert!(usage.cpu_wait().is_some(), "a limit that stays forgives nothing");
        usage.set_limits(&cpu(1000)).unwrap();
        assert_eq!(usage.cpu_wait(), None);
    }

    fn state(sockets: u32, most: Option<usize>) -> ComponentState {
        let usage = Arc::new(Usage::new(&Limits::default()));
        let wasi = wasmtime_wasi::WasiCtxBuilder::new().build();
        let whose = Whose { own: None, usage: Arc::clone(&usage) };
        let stack = Stack::default();
        let limits = SocketLimits { sockets, ..SocketLimits::default() };
        stack.set(PodNetwork { limits, ..PodNetwork::default() }, None);
        ComponentState::new(wasi, Budget::new(usage), Hooks::new(stack, Arc::new(whose)), most)
    }

    fn bounded(state: ComponentState) -> Store<ComponentState> {
        let mut config = wasmtime::Config::new();
        config.wasm_component_model_async(true);
        let mut store = Store::new(&wasmtime::Engine::new(&config).unwrap(), state);
        bound(&mut store);
        store
    }

    #[test]
    fn an_instance_of_one_request_has_few_handles_and_tasks() {
        let state = || state(4096, Some(REQUEST_HANDLES));
        let fits = |table: &mut ResourceTable| {
            (0..=REQUEST_HANDLES).take_while(|_| table.push(()).is_ok()).count()
        };
        assert_eq!(fits(&mut state().table), REQUEST_HANDLES);
        let mut store = bounded(state());
        assert!(fits(store.concurrent_resource_table().unwrap()) <= REQUEST_HANDLES);
    }

    #[test]
    fn a_command_has_handles_and_tasks_for_all_sockets_of_its_pod() {
        // What wasi-libc keeps for a connection, and what one of WASI 0.3 takes.
        const HANDLES: usize = 6;
        const PLACES: usize = 12;
        for sockets in [1, 4096, 16_384] {
            let all = usize::try_from(sockets).unwrap();
            let mut store = bounded(state(sockets, None));
            assert!(store.data().table.max_capacity() >= all * HANDLES);
            assert!(store.max_component_handles() >= all * HANDLES);
            let places = store.concurrent_resource_table().unwrap();
            assert!(places.max_capacity() >= all * PLACES);
        }
    }

    proptest! {
        #[test]
        fn a_container_never_has_more_than_its_limit_and_gives_all_back(
            steps in prop::collection::vec((0_usize..3, 0_usize..5000, any::<bool>()), 0..60)
        ) {
            const LIMIT: u64 = 10_000;
            let usage = Arc::new(Usage::new(&memory(LIMIT)));
            let mut instances: Vec<_> =
                (0..3).map(|_| Budget::new(Arc::clone(&usage))).collect();
            for (which, more, fails) in steps {
                let before = instances[which].denied();
                let granted = instances[which].memory_growing(0, more, None).unwrap();
                let after = instances[which].denied();
                if granted {
                    let forgotten = before.filter(|denied| (more as u64) < denied.more);
                    prop_assert_eq!(after, forgotten);
                } else {
                    prop_assert_eq!(after.map(|denied| denied.more), Some(more as u64));
                }
                if granted && fails {
                    instances[which].memory_grow_failed(wasmtime::Error::msg("no memory")).unwrap();
                }
                prop_assert!(usage.memory() <= LIMIT);
            }
            drop(instances);
            prop_assert_eq!(usage.memory(), 0);
        }
    }

    #[test]
    fn a_guests_own_maximum_is_no_limit_of_ours() {
        let mut budget = Budget::new(Arc::new(Usage::new(&memory(100))));
        assert!(!budget.memory_growing(0, 1000, Some(10)).unwrap());
        assert_eq!(budget.denied(), None);
    }
}
