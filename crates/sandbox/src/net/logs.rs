//! Tells the logs of a pod's containers what its guest hears of by a code that names
//! neither end, or not at all: which way failed that was found good, and that nobody
//! from elsewhere will be heard.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use super::{Family, NetError, Stack};
use crate::log::{Log, LogStream, Stream};

/// Lines of this kind in one log, each once.
const MOST: usize = 16;

/// Those of a pod's containers.
#[derive(Debug, Default)]
pub(super) struct Logs(Mutex<Vec<Reader>>);

#[derive(Debug)]
struct Reader {
    log: Weak<Log>,
    told: BTreeSet<String>,
}

impl Logs {
    fn add(&self, log: &Arc<Log>) {
        let mut readers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        readers.retain(|reader| reader.log.strong_count() > 0);
        readers.push(Reader { log: Arc::downgrade(log), told: BTreeSet::new() });
    }

    fn tell(&self, what: &str) {
        let mut readers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for Reader { log, told } in &mut *readers {
            let Some(log) = log.upgrade() else { continue };
            if told.len() < MOST && told.insert(what.to_owned()) {
                let line = format!("krustlet: {what}\n");
                LogStream::new(log, Stream::Stderr).push(line.as_bytes());
            }
        }
    }
}

impl Stack {
    /// From now on this log is told.
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
            self.0.logs.tell(&format!("there is no way from {} to {to}: {why}", from.ip()));
        }
        if error == NetError::InvalidArgument { NetError::RemoteUnreachable } else { error }
    }

    /// Somebody listens at all addresses of a family, of which the pod has none but its
    /// loopback's. A program that was built for Linux takes `::` for both families.
    pub(super) fn is_heard_within_alone(&self, address: SocketAddr) {
        let (family, other) = match Family::of(address.ip()) {
            Family::V4 => ("IPv4", Family::V6),
            Family::V6 => ("IPv6", Family::V4),
        };
        let other = SocketAddr::new(other.wildcard(), address.port());
        self.0.logs.tell(&format!(
            "{address} is heard within the pod alone, which has no address of {family}; listen \
             at {other} to be reached"
        ));
    }
}
