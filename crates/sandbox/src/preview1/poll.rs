//! `poll_oneoff` where sockets are among what is waited for.
//!
//! Files never make one wait, and the standard streams of a container do not
//! either: its input is at its end, and its output goes to the log.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};
use wasmtime::Error;
use wasmtime_wasi::p1::{WasiP1Ctx, types, wasi_snapshot_preview1::WasiSnapshotPreview1};
use wiggle::GuestMemory;

use super::{
    memory::{Memory, errno},
    table::{Kind, Table},
};
use crate::net::Connection;

/// Bytes of a `subscription` and of an `event`.
const SUBSCRIPTION: u64 = 48;
const EVENT: usize = 32;

/// Subscriptions of one call, which are copied to where no limit of the guest's
/// counts them: two for each of 4096 sockets, which is what a pod may have, and
/// as many others.
const MOST: u32 = 16_384;

/// `eventtype`.
const CLOCK: u8 = 0;
const FD_READ: u8 = 1;
const FD_WRITE: u8 = 2;

/// `eventrwflags`: the other side has ended.
const HANGUP: u16 = 1;

/// `subclockflags`: the time is one of the clock, not from now on.
const ABSOLUTE: u16 = 1;

/// What one subscription waits for.
struct Wait {
    userdata: u64,
    kind: u8,
    what: What,
}

enum What {
    /// Nothing: it is there, with this error number.
    Over(i32),
    /// A time; too far away to be told if none.
    Until(Option<Instant>),
    Accept(u32),
    Read(Arc<Connection>),
    Write(Arc<Connection>),
}

/// Whether a socket is among the subscriptions, or may be: of too many, none is
/// looked at.
pub(super) fn concerns(
    table: &Table,
    memory: &Memory<'_>,
    list: i32,
    count: i32,
) -> Result<bool, Error> {
    if table.is_empty() {
        return Ok(false);
    }
    if count.cast_unsigned() > MOST {
        return Ok(true);
    }
    for index in 0..u64::from(count.cast_unsigned()) {
        let at = u64::from(list.cast_unsigned()) + index * SUBSCRIPTION;
        if memory.u8(at + 8)? != CLOCK && table.has(memory.u32(at + 16)?) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Waits, and says what came.
pub(super) async fn poll(
    table: &mut Table,
    wasi: &mut WasiP1Ctx,
    memory: Memory<'_>,
    [list, events, count, result]: [i32; 4],
) -> Result<i32, Error> {
    if count.cast_unsigned() > MOST {
        return Ok(errno::INVAL);
    }
    let Memory(bytes) = memory;
    let mut waits = Vec::new();
    for index in 0..u64::from(count.cast_unsigned()) {
        let at = u64::from(list.cast_unsigned()) + index * SUBSCRIPTION;
        waits.push(wait(table, wasi, bytes, at).await?);
    }
    let due = waits.iter().filter_map(|wait| match wait.what {
        What::Until(due) => due,
        What::Over(_) | What::Accept(_) | What::Read(_) | What::Write(_) => None,
    });
    let due = due.min();
    {
        let mut alarm = pin!(async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        });
        poll_fn(|context| {
            // All are asked, so that each wakes this.
            let mut any = false;
            for wait in &waits {
                any |= is_ready(table, wait, context);
            }
            if any || alarm.as_mut().poll(context).is_ready() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
    let mut memory = Memory(bytes);
    let mut context = Context::from_waker(std::task::Waker::noop());
    let mut told = 0_u32;
    for wait in waits.iter().filter(|wait| is_ready(table, wait, &mut context)) {
        let at = u64::from(events.cast_unsigned()) + u64::from(told) * EVENT as u64;
        memory.put(at, &event(wait))?;
        told += 1;
    }
    memory.put(u64::from(result.cast_unsigned()), &told.to_le_bytes())?;
    Ok(errno::SUCCESS)
}

async fn wait(
    table: &mut Table,
    wasi: &mut WasiP1Ctx,
    bytes: &mut [u8],
    at: u64,
) -> Result<Wait, Error> {
    let memory = Memory(bytes);
    let (userdata, kind) = (memory.u64(at)?, memory.u8(at + 8)?);
    let what = match kind {
        CLOCK => {
            let (clock, timeout) = (memory.u32(at + 16)?, memory.u64(at + 24)?);
            let absolute = memory.u16(at + 40)? & ABSOLUTE != 0;
            clock_wait(wasi, bytes, clock, timeout, absolute)
        }
        FD_READ | FD_WRITE => {
            let fd = memory.u32(at + 16)?;
            match table.get(fd).map(|socket| &socket.kind) {
                Some(Kind::Listener(_)) if kind == FD_READ => What::Accept(fd),
                Some(Kind::Listener(_)) => What::Over(errno::NOTSUP),
                Some(Kind::Connection(connection)) if kind == FD_READ => {
                    What::Read(Arc::clone(connection))
                }
                Some(Kind::Connection(connection)) => What::Write(Arc::clone(connection)),
                None => {
                    let mut memory = GuestMemory::Unshared(bytes);
                    let there = wasi.fd_fdstat_get(&mut memory, types::Fd::from(fd)).await;
                    What::Over(if there.is_ok() { errno::SUCCESS } else { errno::BADF })
                }
            }
        }
        _ => return Err(Error::msg("poll_oneoff: no such kind of event")),
    };
    Ok(Wait { userdata, kind, what })
}

fn clock_wait(
    wasi: &mut WasiP1Ctx,
    bytes: &mut [u8],
    clock: u32,
    timeout: u64,
    absolute: bool,
) -> What {
    let clock = match clock {
        0 => types::Clockid::Realtime,
        1 => types::Clockid::Monotonic,
        _ => return What::Over(errno::NOTSUP),
    };
    let left = if absolute {
        let mut memory = GuestMemory::Unshared(bytes);
        match wasi.clock_time_get(&mut memory, clock, 0) {
            Ok(now) => timeout.saturating_sub(now),
            Err(_) => return What::Over(errno::INVAL),
        }
    } else {
        timeout
    };
    What::Until(Instant::now().checked_add(Duration::from_nanos(left)))
}

fn is_ready(table: &mut Table, wait: &Wait, context: &mut Context<'_>) -> bool {
    match &wait.what {
        What::Over(_) => true,
        What::Until(due) => due.is_some_and(|due| due <= Instant::now()),
        What::Accept(fd) => match table.get(*fd).map(|socket| &mut socket.kind) {
            Some(Kind::Listener(listener)) => listener.poll_ready(context).is_ready(),
            // No call of the guest runs meanwhile.
            Some(Kind::Connection(_)) | None => true,
        },
        What::Read(connection) => connection.poll_readable(context).is_ready(),
        What::Write(connection) => connection.poll_write_ready(context).is_ready(),
    }
}

fn event(wait: &Wait) -> [u8; EVENT] {
    let (number, bytes, flags) = match &wait.what {
        What::Over(number) => (*number, 1, 0),
        What::Until(_) => (errno::SUCCESS, 0, 0),
        What::Read(connection) => {
            let waiting = connection.waiting();
            let ended = waiting == 0 && connection.has_ended();
            (errno::SUCCESS, waiting, if ended { HANGUP } else { 0 })
        }
        // What goes at once is not known; what a guest makes of it, it tries.
        What::Accept(_) | What::Write(_) => (errno::SUCCESS, 1, 0),
    };
    let mut event = [0; EVENT];
    event[0..8].copy_from_slice(&wait.userdata.to_le_bytes());
    // Numbers are small and not negative.
    let number = u16::try_from(number).unwrap_or(u16::MAX);
    event[8..10].copy_from_slice(&number.to_le_bytes());
    event[10] = wait.kind;
    event[16..24].copy_from_slice(&bytes.to_le_bytes());
    event[24..26].copy_from_slice(&flags.to_le_bytes());
    event
}
