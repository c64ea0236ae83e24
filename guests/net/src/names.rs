//! `wasi:sockets/ip-name-lookup`.

use wasip2::sockets::instance_network::instance_network;
use wasip2::sockets::ip_name_lookup::resolve_addresses;
use wasip2::sockets::network::ErrorCode;

use crate::Failure;
use crate::address::ip;

pub fn lookup(name: &str) -> Result<(), Failure> {
    let addresses = resolve_addresses(&instance_network(), name)?;
    let changed = addresses.subscribe();
    loop {
        match addresses.resolve_next_address() {
            Ok(Some(address)) => println!("{}", ip(address)),
            Ok(None) => return Ok(()),
            Err(ErrorCode::WouldBlock) => changed.block(),
            Err(error) => return Err(error.into()),
        }
    }
}
