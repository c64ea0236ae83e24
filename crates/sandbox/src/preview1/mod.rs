//! Sockets for WASI preview 1, in front of wasmtime's files and clocks.
//!
//! wasmtime's preview 1 has no sockets: here are the calls that know of them.
//! What is asked of another descriptor goes on to wasmtime's own function.
//!
//! A module finds a listener for each TCP port that its container declares,
//! under the numbers that follow those of its directories. (wasi-libc looks for
//! directories from 3 up to the first number that is none.) It is told of them
//! as systemd tells a service (sd_listen_fds(3)).

mod calls;
mod memory;
mod poll;
mod table;

use wasmtime::{Caller, Error, Extern, Linker, Module};
use wasmtime_wasi::{
    WasiView,
    p1::wasi_snapshot_preview1::{self as files, WasiSnapshotPreview1},
};
use wiggle::GuestMemory;

use self::memory::{Memory, errno};
pub(crate) use self::table::Table;
use crate::{
    container::Container,
    ports,
    state::{DRAWN, ModuleState},
    warm::{PREVIEW_0, PREVIEW_1},
};

/// The call without which a module can do nothing with a listener.
const ACCEPT: &str = "sock_accept";

/// The first number after the standard streams.
const FIRST: usize = 3;

/// `oflags`: fail if it exists.
const EXCLUSIVE: i32 = 1 << 2;

/// What a module finds open, and how it is told.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    pub(crate) table: Table,
    /// `LISTEN_FDS`, `LISTEN_FDS_FIRST` and `LISTEN_FDNAMES`.
    pub(crate) env: Vec<(&'static str, String)>,
}

/// Listens on the ports of a container, if its module can accept.
///
/// # Errors
///
/// What people are to read.
pub(crate) fn open(container: &Container, module: &Module) -> Result<Opened, String> {
    let accepts =
        |import: wasmtime::ImportType<'_>| import.module() == PREVIEW_1 && import.name() == ACCEPT;
    let declared = &container.spec.listen_ports;
    // A pod without network, and without sockets of the agent, runs as ever.
    let can_listen = container.stack.is_up() || container.handed_port().is_some();
    if declared.is_empty() || !can_listen || !module.imports().any(accepts) {
        return Ok(Opened::default());
    }
    let listeners = declared.iter().map(|declared| ports::listen(container, declared.port, None));
    let listeners = listeners.collect::<Result<Vec<_>, _>>()?;
    let first = FIRST + container.spec.preopens.len();
    // systemd's word for one without a name.
    let name = |declared: &krustlet_protocol::ListenPort| {
        declared.name.clone().unwrap_or_else(|| "unknown".to_owned())
    };
    let names: Vec<_> = declared.iter().map(name).collect();
    let env = vec![
        ("LISTEN_FDS", listeners.len().to_string()),
        ("LISTEN_FDS_FIRST", first.to_string()),
        ("LISTEN_FDNAMES", names.join(":")),
    ];
    let first = u32::try_from(first).map_err(|_| "too many directories".to_owned())?;
    Ok(Opened { table: Table::new(first, listeners), env })
}

/// The guest's memory and state, ready for a call of wasmtime's.
fn split<'a>(
    caller: &'a mut Caller<'_, ModuleState>,
) -> Result<(&'a mut [u8], &'a mut ModuleState), Error> {
    let fuel = wasmtime::AsContextMut::as_context_mut(caller).hostcall_fuel();
    let Some(Extern::Memory(memory)) = caller.get_export("memory") else {
        return Err(Error::msg("missing required memory export"));
    };
    let (bytes, state) = memory.data_and_store_mut(caller);
    state.wasi.set_hostcall_fuel(fuel);
    Ok((bytes, state))
}

/// Defines a call whose arguments are all of 32 bits: `$do` has the guest's
/// memory and its state.
macro_rules! call {
    ($linker:ident, $name:literal, [$($argument:ident),+], |$bytes:ident, $state:ident| $do:block) => {
        $linker.func_wrap_async(
            PREVIEW_1,
            $name,
            |mut caller: Caller<'_, ModuleState>, ($($argument,)+): ($(call!(@i32 $argument),)+)| {
                Box::new(async move {
                    let ($bytes, $state) = split(&mut caller)?;
                    $do
                })
            },
        )?;
    };
    (@i32 $argument:ident) => { i32 };
}

/// Puts these calls in front of wasmtime's, which must be there.
pub(crate) fn add_to_linker(linker: &mut Linker<ModuleState>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    descriptors(linker)?;
    numbers(linker)?;
    bounded(linker)?;
    sockets(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

fn is_socket(state: &ModuleState, fd: i32) -> bool {
    state.sockets.has(fd.cast_unsigned())
}

/// Calls that do to a socket what they do to a file.
fn descriptors(linker: &mut Linker<ModuleState>) -> wasmtime::Result<()> {
    call!(linker, "fd_read", [fd, list, count, size], |bytes, state| {
        if is_socket(state, fd) {
            let asked = [fd, list, count, 0, size];
            return calls::receive(&mut state.sockets, Memory(bytes), asked, None).await;
        }
        let mut memory = GuestMemory::Unshared(bytes);
        files::fd_read(&mut state.wasi, &mut memory, fd, list, count, size).await
    });
    call!(linker, "fd_write", [fd, list, count, size], |bytes, state| {
        if is_socket(state, fd) {
            let asked = [fd, list, count, 0, size];
            return calls::send(&mut state.sockets, Memory(bytes), asked).await;
        }
        let mut memory = GuestMemory::Unshared(bytes);
        files::fd_write(&mut state.wasi, &mut memory, fd, list, count, size).await
    });
    call!(linker, "fd_fdstat_get", [fd, result], |bytes, state| {
        if is_socket(state, fd) {
            return calls::fdstat(&mut state.sockets, Memory(bytes), fd, result);
        }
        let mut memory = GuestMemory::Unshared(bytes);
        files::fd_fdstat_get(&mut state.wasi, &mut memory, fd, result).await
    });
    call!(linker, "fd_fdstat_set_flags", [fd, flags], |bytes, state| {
        if is_socket(state, fd) {
            return Ok(calls::set_flags(&mut state.sockets, fd, flags));
        }
        let mut memory = GuestMemory::Unshared(bytes);
        files::fd_fdstat_set_flags(&mut state.wasi, &mut memory, fd, flags)
    });
    call!(linker, "fd_filestat_get", [fd, result], |bytes, state| {
        if is_socket(state, fd) {
            return calls::filestat(Memory(bytes), result);
        }
        let mut memory = GuestMemory::Unshared(bytes);
        files::fd_filestat_get(&mut state.wasi, &mut memory, fd, result).await
    });
    call!(linker, "poll_oneoff", [list, events, count, result], |bytes, state| {
        let ModuleState { wasi, sockets, .. } = state;
        if poll::concerns(sockets, &Memory(&mut *bytes), list, count)? {
            let asked = [list, events, count, result];
            return poll::poll(sockets, wasi, Memory(bytes), asked).await;
        }
        let mut memory = GuestMemory::Unshared(bytes);
        files::poll_oneoff(wasi, &mut memory, list, events, count, result).await
    });
    Ok(())
}

/// Calls by which numbers come and go.
fn numbers(linker: &mut Linker<ModuleState>) -> wasmtime::Result<()> {
    call!(linker, "fd_close", [fd], |bytes, state| {
        let mut memory = GuestMemory::Unshared(bytes);
        match state.sockets.remove(fd.cast_unsigned()) {
            // Nothing is heard of a failure: what the guest had is closed.
            Some(socket) if socket.hides => {
                files::fd_close(&mut state.wasi, &mut memory, fd).await?;
                Ok(errno::SUCCESS)
            }
            Some(_) => Ok(errno::SUCCESS),
            None => files::fd_close(&mut state.wasi, &mut memory, fd).await,
        }
    });
    call!(linker, "fd_renumber", [from, to], |bytes, state| {
        let mut memory = GuestMemory::Unshared(bytes);
        let (ours_from, ours_to) = (is_socket(state, from), is_socket(state, to));
        if !ours_from && !ours_to {
            return files::fd_renumber(&mut state.wasi, &mut memory, from, to).await;
        }
        if !ours_from {
            // wasmtime moves to numbers only that are in use with it.
            return Ok(errno::NOTSUP);
        }
        let to_number = wasmtime_wasi::p1::types::Fd::from(to.cast_unsigned());
        let there = state.wasi.fd_fdstat_get(&mut memory, to_number).await.is_ok();
        if !ours_to && !there {
            return Ok(errno::BADF);
        }
        let hid = state.sockets.rename(from.cast_unsigned(), to.cast_unsigned(), there);
        if hid {
            files::fd_close(&mut state.wasi, &mut memory, from).await?;
        }
        Ok(errno::SUCCESS)
    });
    Ok(())
}

/// What wasmtime does without a bound, also of modules from before 2019, whose calls
/// are the same: files are counted, and random bytes drawn in pieces.
fn bounded(linker: &mut Linker<ModuleState>) -> wasmtime::Result<()> {
    for module in [PREVIEW_1, PREVIEW_0] {
        linker.func_wrap_async(
            module,
            "path_open",
            |mut caller: Caller<'_, ModuleState>, asked: Asked| {
                Box::new(async move {
                    let (bytes, state) = split(&mut caller)?;
                    open_file(bytes, state, asked).await
                })
            },
        )?;
        linker.func_wrap_async(
            module,
            "random_get",
            |mut caller: Caller<'_, ModuleState>, (at, length): (i32, i32)| {
                Box::new(async move {
                    let (bytes, state) = split(&mut caller)?;
                    draw(bytes, state, at.cast_unsigned(), length.cast_unsigned()).await
                })
            },
        )?;
    }
    Ok(())
}

/// The arguments of `path_open`. Its rights are of 64 bits.
type Asked = (i32, i32, i32, i32, i32, i64, i64, i32, i32);

async fn open_file(
    bytes: &mut [u8],
    state: &mut ModuleState,
    (fd, look, path, length, mut how, base, inheriting, flags, result): Asked,
) -> Result<i32, Error> {
    loop {
        if !state.files.has_room(state.wasi.ctx().table) {
            return Ok(errno::MFILE);
        }
        let mut memory = GuestMemory::Unshared(&mut *bytes);
        let done = files::path_open(
            &mut state.wasi,
            &mut memory,
            fd,
            look,
            path,
            length,
            how,
            base,
            inheriting,
            flags,
            result,
        );
        let done = done.await?;
        if done != errno::SUCCESS {
            return Ok(done);
        }
        state.files.opened();
        if state.sockets.is_empty() {
            return Ok(done);
        }
        let opened = Memory(&mut *bytes).u32(u64::from(result.cast_unsigned()))?;
        // wasmtime has given the number of a socket of ours: it is kept, with the
        // file, until the socket is closed, and the file is opened once more.
        let Some(socket) = state.sockets.get(opened) else { return Ok(done) };
        socket.hides = true;
        how &= !EXCLUSIVE;
    }
}

/// Others have their turn between the pieces.
async fn draw(
    bytes: &mut [u8],
    state: &mut ModuleState,
    mut at: u32,
    mut length: u32,
) -> Result<i32, Error> {
    loop {
        let piece = length.min(DRAWN);
        let mut memory = GuestMemory::Unshared(&mut *bytes);
        let (to, count) = (at.cast_signed(), piece.cast_signed());
        let done = files::random_get(&mut state.wasi, &mut memory, to, count)?;
        length -= piece;
        if done != errno::SUCCESS || length == 0 {
            return Ok(done);
        }
        let Some(next) = at.checked_add(piece) else { return Ok(errno::FAULT) };
        at = next;
        tokio::task::yield_now().await;
    }
}

/// Calls that are for sockets alone.
fn sockets(linker: &mut Linker<ModuleState>) -> wasmtime::Result<()> {
    call!(linker, "sock_accept", [fd, flags, result], |bytes, state| {
        if is_socket(state, fd) {
            let asked = (fd, flags, result);
            return calls::accept(&mut state.sockets, Memory(bytes), asked).await;
        }
        let mut memory = GuestMemory::Unshared(bytes);
        files::sock_accept(&mut state.wasi, &mut memory, fd, flags, result)
    });
    call!(linker, "sock_recv", [fd, list, count, flags, size, truncated], |bytes, state| {
        if is_socket(state, fd) {
            let (asked, sockets) = ([fd, list, count, flags, size], &mut state.sockets);
            return calls::receive(sockets, Memory(bytes), asked, Some(truncated)).await;
        }
        let mut memory = GuestMemory::Unshared(bytes);
        files::sock_recv(&mut state.wasi, &mut memory, fd, list, count, flags, size, truncated)
    });
    call!(linker, "sock_send", [fd, list, count, flags, size], |bytes, state| {
        if is_socket(state, fd) {
            let asked = [fd, list, count, flags, size];
            return calls::send(&mut state.sockets, Memory(bytes), asked).await;
        }
        let mut memory = GuestMemory::Unshared(bytes);
        files::sock_send(&mut state.wasi, &mut memory, fd, list, count, flags, size)
    });
    call!(linker, "sock_shutdown", [fd, how], |bytes, state| {
        if is_socket(state, fd) {
            return Ok(calls::shutdown(&mut state.sockets, fd, how));
        }
        let mut memory = GuestMemory::Unshared(bytes);
        files::sock_shutdown(&mut state.wasi, &mut memory, fd, how)
    });
    Ok(())
}
