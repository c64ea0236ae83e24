//! `wasi:sockets/ip-name-lookup`: names by the pod's own rules.

use std::{
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    vec,
};

use krustlet_resolver::LookupError;
use tokio::sync::OwnedSemaphorePermit;
use wasmtime::component::Resource;
use wasmtime_wasi::{
    async_trait,
    p2::{
        DynPollable, Pollable,
        bindings::sockets::network::{ErrorCode, IpAddress, Network},
        subscribe,
    },
    runtime::{AbortOnDropJoinHandle, spawn},
};

use super::{SocketResult, SocketsView, bindings::ip_name_lookup};
use crate::{net::Stack, state::Usage, ticker::Metered};

type Found = Result<vec::IntoIter<IpAddr>, ErrorCode>;

/// The addresses of a name, when they are found. Dropped before, the look-up
/// ends.
#[expect(unreachable_pub, reason = "the bindings re-export it")]
pub struct Addresses {
    state: State,
    /// What is found takes memory that no limit of the guest counts.
    _permit: OwnedSemaphorePermit,
}

enum State {
    Sought(AbortOnDropJoinHandle<Found>),
    Found(Found),
}

impl ip_name_lookup::Host for SocketsView<'_> {
    fn resolve_addresses(
        &mut self,
        network: Resource<Network>,
        name: String,
    ) -> SocketResult<Resource<Addresses>> {
        self.table.get(&network)?;
        if !self.stack.is_up() {
            return Err(ErrorCode::AccessDenied.into());
        }
        let permit = self.stack.lookup_handle().ok_or(ErrorCode::TemporaryResolverFailure)?;
        let sought = seek(self.stack.clone(), name, Arc::clone(self.usage));
        Ok(self.table.push(Addresses { state: State::Sought(sought), _permit: permit })?)
    }
}

/// Looks a name up for a container, which is charged for it.
fn seek(stack: Stack, name: String, usage: Arc<Usage>) -> AbortOnDropJoinHandle<Found> {
    let seeks = async move {
        let found = stack.lookup(&name).await;
        found.map(Vec::into_iter).map_err(|error| code(&error))
    };
    spawn(Metered::of_host(seeks, usage))
}

impl ip_name_lookup::HostResolveAddressStream for SocketsView<'_> {
    fn resolve_next_address(
        &mut self,
        addresses: Resource<Addresses>,
    ) -> SocketResult<Option<IpAddress>> {
        let addresses = self.table.get_mut(&addresses)?;
        let found = addresses.poll(&mut Context::from_waker(Waker::noop()));
        match found {
            Poll::Pending => Err(ErrorCode::WouldBlock.into()),
            Poll::Ready(Ok(found)) => Ok(found.next().map(Into::into)),
            Poll::Ready(Err(code)) => Err((*code).into()),
        }
    }

    fn subscribe(
        &mut self,
        addresses: Resource<Addresses>,
    ) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, addresses)
    }

    fn drop(&mut self, addresses: Resource<Addresses>) -> wasmtime::Result<()> {
        self.table.delete(addresses)?;
        Ok(())
    }
}

impl Addresses {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<&mut Found> {
        if let State::Sought(sought) = &mut self.state {
            match Pin::new(sought).poll(context) {
                Poll::Ready(found) => self.state = State::Found(found),
                Poll::Pending => return Poll::Pending,
            }
        }
        match &mut self.state {
            State::Found(found) => Poll::Ready(found),
            State::Sought(_) => Poll::Pending,
        }
    }
}

#[async_trait]
impl Pollable for Addresses {
    async fn ready(&mut self) {
        std::future::poll_fn(|context| self.poll(context).map(drop)).await;
    }
}

fn code(error: &LookupError) -> ErrorCode {
    match error {
        LookupError::Invalid => ErrorCode::InvalidArgument,
        LookupError::NotFound => ErrorCode::NameUnresolvable,
        LookupError::Silence | LookupError::Failed { .. } | LookupError::Busy => {
            ErrorCode::TemporaryResolverFailure
        }
        LookupError::NoServers => ErrorCode::PermanentResolverFailure,
        LookupError::Denied => ErrorCode::AccessDenied,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::poll;
    use krustlet_protocol::{Host, Limits, Names, PodNetwork};
    use tokio::{task::yield_now, time::timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_look_up_is_charged_to_its_container_and_waits_with_it() {
        let stack = Stack::default();
        let address = IpAddr::from([192, 0, 2, 7]);
        let hosts = vec![Host { address, names: vec!["web.test".to_owned()] }];
        let names = Names { hosts, ..Names::default() };
        let addresses = vec![IpAddr::from([192, 0, 2, 1])];
        stack.set(PodNetwork { addresses, names: Some(names), ..PodNetwork::default() }, None);
        let usage = Arc::new(Usage::new(&Limits { memory_bytes: None, cpu_millis: Some(10) }));
        let look = || seek(stack.clone(), "web.test".to_owned(), Arc::clone(&usage));
        assert_eq!(look().await.unwrap().as_slice(), [address]);
        assert!(usage.cpu() > 0);
        // More than it has in any time that this takes.
        usage.charge_cpu(1_000_000_000);
        let mut sought = look();
        for _ in 0..100 {
            assert!(poll!(&mut sought).is_pending());
            yield_now().await;
        }
        usage.set_limits(&Limits::default()).unwrap();
        let found = timeout(Duration::from_hours(1), sought).await.expect("it hangs");
        assert_eq!(found.unwrap().as_slice(), [address]);
    }
}
