//! One end of a pipe that the agent handed over, read or written without
//! blocking the guests' thread.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

use crate::zygote::nonblocking;

/// One end of a pipe or socket, or a file.
#[derive(Debug)]
pub(crate) enum Pipe {
    Polled(AsyncFd<File>),
    /// What epoll does not take (a file, `/dev/null`) never makes one wait.
    Plain(File),
}

impl Pipe {
    /// # Errors
    ///
    /// What the system said.
    pub(crate) fn open(fd: OwnedFd) -> io::Result<Self> {
        nonblocking(&fd)?;
        // SAFETY: the AsyncFd owns the file, and a file's number never changes.
        match unsafe { AsyncFd::register(File::from(fd)) } {
            Ok(polled) => Ok(Self::Polled(polled)),
            Err(error) => {
                let (file, error) = error.into_parts();
                if error.raw_os_error() == Some(libc::EPERM) {
                    Ok(Self::Plain(file))
                } else {
                    Err(error)
                }
            }
        }
    }

    /// Waits until nobody reads any more what is written. Never, for a file.
    pub(crate) async fn unread(&self) {
        match self {
            Self::Plain(_) => std::future::pending().await,
            Self::Polled(polled) => {
                // A pipe without readers has an error pending (poll(2)). It is
                // never cleared: so it is, once it is.
                let _ = polled.ready(Interest::ERROR).await;
            }
        }
    }

    pub(crate) fn poll_write(
        &self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = match self {
            Self::Plain(file) => return Poll::Ready((&*file).write(bytes)),
            Self::Polled(polled) => polled,
        };
        loop {
            let mut guard = ready!(polled.poll_write_ready(context))?;
            if let Ok(written) = guard.try_io(|file| file.get_ref().write(bytes)) {
                return Poll::Ready(written);
            }
        }
    }
}

/// The reading side.
pub(crate) struct Input(pub(crate) Pipe);

impl AsyncRead for Input {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let free = buffer.initialize_unfilled();
        let read = match &self.0 {
            Pipe::Plain(file) => (&*file).read(free),
            Pipe::Polled(polled) => loop {
                let mut guard = ready!(polled.poll_read_ready(context))?;
                if let Ok(read) = guard.try_io(|file| file.get_ref().read(free)) {
                    break read;
                }
            },
        };
        buffer.advance(read?);
        Poll::Ready(Ok(()))
    }
}

/// The writing side, while somebody else watches whether it is read.
pub(crate) struct Output<'a>(pub(crate) &'a Pipe);

impl AsyncWrite for Output<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing is held back.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // It ends with its descriptor.
        Poll::Ready(Ok(()))
    }
}
