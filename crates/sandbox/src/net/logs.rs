//! Tells the logs of a pod's containers which way failed that was found good: its
//! guest hears a code, which names neither end.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use super::{NetError, Stack};
use crate::log::{Log, LogStream, Stream};

/// Ways that one log is told of, each once.
const MOST: usize = 16;

/// Those of a pod's containers.
#[derive(Debug, Default)]
pub(super) struct Logs(Mutex<Vec<Reader>>);

#[derive(Debug)]
struct Reader {
    log: Weak<Log>,
    told: BTreeSet<(IpAddr, SocketAddr)>,
}

impl Logs {
    fn add(&self, log: &Arc<Log>) {
        let mut readers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        readers.retain(|reader| reader.log.strong_count() > 0);
        readers.push(Reader { log: Arc::downgrade(log), told: BTreeSet::new() });
    }

    fn tell(&self, from: IpAddr, to: SocketAddr, why: &str) {
        let mut readers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for Reader { log, told } in &mut *readers {
            let Some(log) = log.upgrade() else { continue };
            if told.len() < MOST && told.insert((from, to)) {
                let line = format!("krustlet: there is no way from {from} to {to}: {why}\n");
                LogStream::new(log, Stream::Stderr).push(line.as_bytes());
            }
        }
    }
}

impl Stack {
    /// From now on this log is told of ways that fail.
    pub(crate) fn log_to(&self, log: &Arc<Log>) {
        self.0.logs.add(log);
    }

    /// What befell who went from a socket's address to where guests may go. An
    /// argument is invalid only if the one does not lead to the other, as a loopback's
    /// to another machine (Linux, `__mkroute_output` in `net/ipv4/route.c`).
    pub(super) fn on_the_way(
        &self,
        from: io::Result<SocketAddr>,
        to: SocketAddr,
        error: impl Into<io::Error>,
    ) -> NetError {
        let error = error.into();
        let why = error.to_string();
        let error = NetError::from(error);
        if matches!(error, NetError::InvalidArgument | NetError::Unknown)
            && let Ok(from) = from
        {
            self.0.logs.tell(from.ip(), to, &why);
        }
        if error == NetError::InvalidArgument { NetError::RemoteUnreachable } else { error }
    }
}
