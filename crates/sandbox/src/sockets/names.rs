//! `wasi:sockets/ip-name-lookup`: names by the pod's own rules.

use std::{
    net::IpAddr,
    pin::Pin,
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
        let stack = self.stack.clone();
        let sought = spawn(async move {
            let found = stack.lookup(&name).await;
            found.map(Vec::into_iter).map_err(|error| code(&error))
        });
        Ok(self.table.push(Addresses { state: State::Sought(sought), _permit: permit })?)
    }
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
