//! Names that the agent itself asks for: of registries, of its API server, of the
//! hosts of probes. The node's system looks them up, as for every program there.
//!
//! That takes one of the threads that all file work shares, for as long as the
//! system waits for name servers: half a minute and more if they are dead, whether
//! or not anybody still waits for the answer. So each kind of name has a few
//! threads at most.

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs},
    sync::Arc,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::spawn_blocking,
};

/// Looks up one kind of names. Clones have their bound in common.
#[derive(Clone, Debug)]
pub struct SystemLookups {
    turns: Arc<Semaphore>,
    /// Those of one for whom fewer are looked up.
    own: Option<Arc<Semaphore>>,
}

/// Leave to look a name up.
#[derive(Debug)]
pub struct LookupTurn {
    _turn: OwnedSemaphorePermit,
    _own: Option<OwnedSemaphorePermit>,
}

impl SystemLookups {
    /// So many are looked up at once; more wait.
    #[must_use]
    pub fn new(at_once: usize) -> Self {
        Self { turns: Arc::new(Semaphore::new(at_once)), own: None }
    }

    /// For somebody who may not take the turns of all: one of his names is looked
    /// up at a time, and no second one waits in the row of the others.
    #[must_use]
    pub fn for_one(&self) -> Self {
        Self { turns: Arc::clone(&self.turns), own: Some(Arc::new(Semaphore::new(1))) }
    }

    /// Waits until a name may be looked up.
    ///
    /// # Errors
    ///
    /// None is expected: the turns never end.
    pub async fn turn(&self) -> io::Result<LookupTurn> {
        let own = match &self.own {
            Some(own) => Some(Arc::clone(own).acquire_owned().await.map_err(io::Error::other)?),
            None => None,
        };
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(io::Error::other)?;
        Ok(LookupTurn { _turn: turn, _own: own })
    }

    /// The addresses of a host, each with the port. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub async fn look_up(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        self.turn().await?.look_up(host, port).await
    }
}

impl LookupTurn {
    /// The addresses of a host, each with the port. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// What the system said.
    #[expect(clippy::disallowed_methods, reason = "the one place that is bounded")]
    pub async fn look_up(self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let host = host.to_owned();
        self.work(move || Ok((host.as_str(), port).to_socket_addrs()?.collect())).await
    }

    async fn work<T: Send + 'static>(
        self,
        look_up: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let found = spawn_blocking(move || {
            // Held until the system has its answer.
            let _turn = self;
            look_up()
        });
        found.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use futures::FutureExt;
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn who_no_longer_waits_has_his_turn_until_the_system_has_its_answer() {
        let lookups = SystemLookups::new(2);
        let (begins, begun) = mpsc::channel();
        let mut ends = Vec::new();
        for _ in 0..2 {
            let (begins, (end, ended)) = (begins.clone(), mpsc::channel::<()>());
            let turn = lookups.turn().await.unwrap();
            let waits = turn.work(move || {
                begins.send(()).unwrap();
                // Until the other end is dropped.
                let _ = ended.recv();
                Ok(())
            });
            ends.push(end);
            assert!(waits.now_or_never().is_none());
            begun.recv_timeout(Duration::from_secs(20)).unwrap();
        }
        let mut third = Box::pin(lookups.turn());
        assert!(third.as_mut().now_or_never().is_none());
        assert_eq!(lookups.turns.available_permits(), 0);
        drop(ends.pop());
        let third = timeout(Duration::from_secs(20), third).await.unwrap().unwrap();
        assert!(third.work(move || Ok(begins.send(()).is_ok())).await.unwrap());
    }

    #[tokio::test]
    async fn only_those_who_have_a_turn_ask_the_system() {
        let lookups = SystemLookups::new(1);
        let found = lookups.look_up("127.0.0.1", 80).await.unwrap();
        assert_eq!(found, ["127.0.0.1:80".parse().unwrap()]);
        lookups.turns.close();
        lookups.look_up("127.0.0.1", 80).await.unwrap_err();
    }

    #[tokio::test]
    async fn one_of_many_has_a_turn_at_a_time() {
        let all = SystemLookups::new(2);
        let (one, other) = (all.for_one(), all.for_one());
        let turn = one.turn().await.unwrap();
        let mut second = Box::pin(one.turn());
        assert!(second.as_mut().now_or_never().is_none());
        assert!(other.turn().now_or_never().is_some());
        drop(turn);
        second.await.unwrap();
    }
}
