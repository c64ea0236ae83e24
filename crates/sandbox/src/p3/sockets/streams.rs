//! The streams of TCP: what comes in, what goes out, who connects.
//!
//! Nothing is held here for a guest. What it writes goes from its memory to the
//! connection when there is room, and is sent also when the guest is gone; what
//! comes goes to its memory when it reads. Where it has joined what comes to
//! something else (a connection that sends, a file), no memory of its own is on the
//! way: then what was read is held until that has taken it, and counted as what the
//! pod's sockets keep.

use std::{
    io,
    net::Shutdown,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    sync::oneshot,
    time::{Sleep, sleep},
};
use wasmtime::{
    StoreContextMut,
    component::{Destination, Resource, Source, StreamConsumer, StreamProducer, StreamResult},
};

use super::{
    ErrorCode, SocketsView,
    tcp::{Listening, TcpSocket},
};
use crate::net::{Connection, LEAST_MEMORY, NetError, SocketMemory, Taken};

/// Bytes of one read or write.
const MOST: usize = 64 << 10;

/// Reads or writes one after the other before others have their turn. A guest
/// may have two connections joined, and then nothing else stops them: no
/// instruction of it runs.
const TURNS: u8 = 16;

/// Wait after a failed accept, as of http servers: descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How a direction ended, told once.
type Told = oneshot::Sender<Result<(), ErrorCode>>;

/// One direction of a connection, until it has ended.
#[derive(Debug)]
struct Direction {
    open: Option<(Arc<Connection>, Told)>,
    which: Shutdown,
    turns: u8,
}

impl Direction {
    fn new(connection: Arc<Connection>, told: Told, which: Shutdown) -> Self {
        Self { open: Some((connection, told)), which, turns: 0 }
    }

    fn connection(&self) -> Option<Arc<Connection>> {
        self.open.as_ref().map(|(connection, _)| Arc::clone(connection))
    }

    /// The other side has ended it, or it is broken.
    fn over(&mut self, how: Result<(), ErrorCode>) -> StreamResult {
        if let Some((_, told)) = self.open.take() {
            // The guest may not want to know.
            let _ = told.send(how);
        }
        StreamResult::Dropped
    }

    /// Ready but for once after [`TURNS`] times.
    fn poll_turn(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.turns += 1;
        if self.turns <= TURNS {
            return Poll::Ready(());
        }
        self.turns = 0;
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Calls `attempt` until it does not have to wait.
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        connection: &Connection,
        mut attempt: impl FnMut() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_turn(context));
        loop {
            match attempt() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(match self.which {
                        Shutdown::Write => connection.poll_write_ready(context),
                        Shutdown::Read | Shutdown::Both => connection.poll_read_ready(context),
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return Poll::Ready(done),
            }
        }
    }
}

impl Drop for Direction {
    /// Letting go of it ends it in order.
    fn drop(&mut self) {
        if let Some((connection, told)) = self.open.take() {
            connection.shutdown(self.which);
            let _ = told.send(Ok(()));
        }
    }
}

/// A wait as a stream says it: one that is to finish is given up.
fn or_cancelled<T>(
    polled: Poll<T>,
    finish: bool,
    done: impl FnOnce(T) -> StreamResult,
) -> Poll<wasmtime::Result<StreamResult>> {
    match polled {
        Poll::Ready(value) => Poll::Ready(Ok(done(value))),
        Poll::Pending if finish => Poll::Ready(Ok(StreamResult::Cancelled)),
        Poll::Pending => Poll::Pending,
    }
}

/// What comes in.
#[derive(Debug)]
pub(super) struct Receiving {
    direction: Direction,
    memory: Arc<SocketMemory>,
    /// For what is held now.
    taken: Option<Taken>,
}

impl Receiving {
    pub(super) fn new(connection: Arc<Connection>, memory: Arc<SocketMemory>, told: Told) -> Self {
        let direction = Direction::new(connection, told, Shutdown::Read);
        Self { direction, memory, taken: None }
    }

    /// Reads what is there into memory that is taken only then.
    fn poll_held(
        &mut self,
        context: &mut Context<'_>,
        connection: &Connection,
    ) -> Poll<io::Result<BytesMut>> {
        let Self { direction, memory, taken } = self;
        let mut held = BytesMut::new();
        let read = direction.poll(context, connection, || {
            // One byte at least, for the end to be found.
            let there = usize::try_from(connection.waiting()).unwrap_or(MOST).clamp(1, MOST);
            let counted = if there > LEAST_MEMORY { memory.hold(there) } else { None };
            let most = if counted.is_some() { there } else { there.min(LEAST_MEMORY) };
            let mut buffer = BytesMut::zeroed(most);
            let read = connection.try_read(&mut buffer)?;
            buffer.truncate(read);
            (held, *taken) = (buffer, counted);
            Ok(read)
        });
        read.map_ok(|_| held)
    }
}

impl<D> StreamProducer<D> for Receiving {
    type Item = u8;
    type Buffer = BytesMut;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut to: Destination<'a, u8, BytesMut>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let Some(connection) = self.direction.connection() else {
            return Poll::Ready(Ok(StreamResult::Dropped));
        };
        match to.remaining(&mut store) {
            Some(0) => {
                // Whoever reads nothing wants to know when there is something.
                let readable = connection.poll_readable(context);
                return or_cancelled(readable, finish, |()| StreamResult::Completed);
            }
            Some(_) => {}
            None => {
                // What was held has been taken.
                drop((to.take_buffer(), self.taken.take()));
                let held = self.poll_held(context, &connection);
                return or_cancelled(held, finish, |held| match held {
                    Ok(held) if held.is_empty() => self.direction.over(Ok(())),
                    Ok(held) => {
                        to.set_buffer(held);
                        StreamResult::Completed
                    }
                    Err(error) => self.direction.over(Err(NetError::from(error).into())),
                });
            }
        }
        // Its own memory, whatever is asked for.
        let mut to = to.as_direct(store, 0);
        let read = self.direction.poll(context, &connection, || {
            let room = to.remaining();
            let most = room.len().min(MOST);
            connection.try_read(&mut room[..most])
        });
        or_cancelled(read, finish, |read| match read {
            Ok(0) => self.direction.over(Ok(())),
            Ok(read) => {
                to.mark_written(read);
                StreamResult::Completed
            }
            Err(error) => self.direction.over(Err(NetError::from(error).into())),
        })
    }
}

/// What goes out.
#[derive(Debug)]
pub(super) struct Sending(Direction);

impl Sending {
    pub(super) fn new(connection: Arc<Connection>, told: Told) -> Self {
        Self(Direction::new(connection, told, Shutdown::Write))
    }
}

impl<D> StreamConsumer<D> for Sending {
    type Item = u8;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        store: StoreContextMut<'_, D>,
        from: Source<'_, u8>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let Some(connection) = self.0.connection() else {
            return Poll::Ready(Ok(StreamResult::Dropped));
        };
        let mut from = from.as_direct(store);
        // Whoever writes nothing wants to know when there is room.
        if from.remaining().is_empty() {
            let writable = connection.poll_write_ready(context);
            return or_cancelled(writable, finish, |()| StreamResult::Completed);
        }
        let written = self.0.poll(context, &connection, || {
            let bytes = from.remaining();
            connection.try_write(&bytes[..bytes.len().min(MOST)])
        });
        or_cancelled(written, finish, |written| match written {
            Ok(written) => {
                from.mark_read(written);
                StreamResult::Completed
            }
            Err(error) => self.0.over(Err(NetError::from(error).into())),
        })
    }
}

/// Who connects.
pub(super) struct Accepting<D: 'static> {
    listening: Arc<Listening>,
    view: for<'a> fn(&'a mut D) -> SocketsView<'a>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl<D> Accepting<D> {
    pub(super) fn new(
        listening: Arc<Listening>,
        view: for<'a> fn(&'a mut D) -> SocketsView<'a>,
    ) -> Self {
        Self { listening, view, pause: None }
    }

    /// The next connection. Those that fail before are none of the guest's.
    fn poll_accept(&mut self, context: &mut Context<'_>) -> Poll<TcpSocket> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(context));
                self.pause = None;
            }
            match ready!(self.listening.poll_accept(context)) {
                Ok(socket) => return Poll::Ready(socket),
                Err(NetError::ConnectionAborted) => {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Err(_) => self.pause = Some(Box::pin(sleep(ACCEPT_PAUSE))),
            }
        }
    }
}

impl<D: 'static> StreamProducer<D> for Accepting<D> {
    type Item = Resource<TcpSocket>;
    type Buffer = Option<Resource<TcpSocket>>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut to: Destination<'a, Self::Item, Self::Buffer>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        if to.remaining(&mut store) == Some(0) {
            let ready = self.listening.poll_ready(context);
            return or_cancelled(ready, finish, |()| StreamResult::Completed);
        }
        match self.poll_accept(context) {
            Poll::Ready(socket) => {
                let socket = (self.view)(store.data_mut()).table.push(socket)?;
                to.set_buffer(Some(socket));
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Poll::Pending if finish => Poll::Ready(Ok(StreamResult::Cancelled)),
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{task::yield_now, time::timeout};
    use wasmtime::{Config, Engine, Store, component::StreamReader};

    use super::*;
    use crate::net::test_connections;

    /// Takes nothing, as a connection whose peer does not read.
    struct Stalled;

    impl<D> StreamConsumer<D> for Stalled {
        type Item = u8;

        fn poll_consume(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: StoreContextMut<'_, D>,
            _: Source<'_, u8>,
            _: bool,
        ) -> Poll<wasmtime::Result<StreamResult>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn what_no_guests_memory_holds_is_taken_when_it_is_there_and_counted() {
        const BYTES: usize = 3 * LEAST_MEMORY;
        let mut config = Config::new();
        config.wasm_component_model_async(true);
        let mut store = Store::new(&Engine::new(&config).unwrap(), ());
        let [ours, theirs] = test_connections();
        let memory = Arc::<SocketMemory>::default();
        let (tell, _told) = oneshot::channel();
        let receiving = Receiving::new(Arc::new(ours), Arc::clone(&memory), tell);
        let stream = StreamReader::new(&mut store, receiving).unwrap();
        stream.pipe(&mut store, Stalled).unwrap();
        let runs = store.run_concurrent(async |_| {
            for _ in 0..16 {
                yield_now().await;
            }
            assert_eq!(memory.used(), 0, "there is nothing to hold");
            assert_eq!(theirs.try_write(&[b'.'; BYTES]).unwrap(), BYTES);
            while memory.used() < BYTES {
                yield_now().await;
            }
            assert_eq!(memory.used(), BYTES);
        });
        timeout(Duration::from_secs(20), runs).await.expect("it is counted").unwrap();
        drop(store);
        assert_eq!(memory.used(), 0);
    }
}
