//! `wasi:sockets/ip-name-lookup`: names by the pod's own rules.

use krustlet_resolver::LookupError;
use wasmtime::component::Accessor;

use super::{
    IpAddress, Sockets, SocketsView,
    ip_name_lookup::{self, ErrorCode},
};

impl ip_name_lookup::Host for SocketsView<'_> {}

impl<T: Send> ip_name_lookup::HostWithStore<T> for Sockets {
    async fn resolve_addresses(
        store: &Accessor<T, Self>,
        name: String,
    ) -> wasmtime::Result<Result<Vec<IpAddress>, ErrorCode>> {
        let stack = store.with(|mut store| store.get().stack.clone());
        if !stack.is_up() {
            return Ok(Err(ErrorCode::AccessDenied));
        }
        // What is found takes memory that no limit of the guest counts.
        let Some(_permit) = stack.lookup_handle() else {
            return Ok(Err(ErrorCode::TemporaryResolverFailure));
        };
        let found = stack.lookup(&name).await;
        Ok(found
            .map(|addresses| addresses.into_iter().map(Into::into).collect())
            .map_err(|error| code(&error)))
    }
}

fn code(error: &LookupError) -> ErrorCode {
    match error {
        LookupError::Invalid => ErrorCode::InvalidArgument,
        LookupError::NotFound => ErrorCode::NameUnresolvable,
        LookupError::Denied => ErrorCode::AccessDenied,
        LookupError::Silence | LookupError::Failed { .. } | LookupError::Busy => {
            ErrorCode::TemporaryResolverFailure
        }
        LookupError::NoServers => ErrorCode::PermanentResolverFailure,
    }
}
