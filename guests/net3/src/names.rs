//! `wasi:sockets/ip-name-lookup`.

use wasip3::sockets::ip_name_lookup::{ErrorCode, resolve_addresses};

use crate::address::ip;
use crate::{Failure, say};

pub async fn lookup(name: &str) -> Result<(), Failure> {
    match resolve_addresses(name.to_owned()).await {
        Ok(addresses) => {
            for address in addresses {
                say(format!("{}\n", ip(address))).await;
            }
            Ok(())
        }
        Err(code) => Err(Failure::Other(
            match code {
                ErrorCode::AccessDenied => "access-denied",
                ErrorCode::InvalidArgument => "invalid-argument",
                ErrorCode::NameUnresolvable => "name-unresolvable",
                ErrorCode::TemporaryResolverFailure => "temporary-resolver-failure",
                ErrorCode::PermanentResolverFailure => "permanent-resolver-failure",
                ErrorCode::Other(_) => "other",
            }
            .to_owned(),
        )),
    }
}
