//! Which of a name's addresses is connected to: the first that answers.
//!
//! ```text
//! one ──▶ another, when one has failed or has not answered for a moment ──▶ …
//!  └──────────────┴──first to connect──▶ the others are let go
//! ```
//!
//! One that swallows everything must not keep a guest waiting while others are there:
//! the system gives it up only after two minutes. Source: RFC 8305, 4 and 5.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep, sleep_until};

use super::connect::ConnectError;
use crate::net::{Connection, NetError, Options, Stack};

/// How long one may take before another is tried (RFC 8305, 5).
const MOMENT: Duration = Duration::from_millis(250);

/// Those that are tried at once. Each is a socket of the pod, all but the first of
/// such as it can spare.
const AT_ONCE: usize = 8;

/// The families in turn, that of the first address first; within one as they come
/// (RFC 8305, 4).
fn in_turn(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let is_first =
        |address: &&IpAddr| addresses.first().map(IpAddr::is_ipv4) == Some(address.is_ipv4());
    let (ones, others): (Vec<&IpAddr>, Vec<&IpAddr>) = addresses.iter().partition(is_first);
    let (mut ones, mut others) = (ones.into_iter(), others.into_iter());
    let mut all = Vec::with_capacity(addresses.len());
    while all.len() < addresses.len() {
        all.extend(ones.next());
        all.extend(others.next());
    }
    all
}

/// Connects to one of these.
///
/// # Errors
///
/// That it may not go there, if any of them was refused so; else the last.
pub(super) async fn first_of(
    stack: &Stack,
    addresses: &[IpAddr],
    port: u16,
    end: Instant,
) -> Result<Connection, ConnectError> {
    let addresses = in_turn(addresses);
    let mut next = 0;
    let mut open = FuturesUnordered::new();
    let mut why = None;
    loop {
        if let Some(address) = addresses.get(next)
            && open.len() < AT_ONCE
        {
            let permit = if open.is_empty() {
                Some(stack.permit_or_room().await?)
            } else {
                // Without a socket it has to wait for those who have one.
                stack.permit_to_spare()
            };
            if let Some(permit) = permit {
                let to = SocketAddr::new(*address, port);
                open.push(stack.connect_tcp(permit, Options::default(), to));
                next += 1;
            }
        }
        let may_try = next < addresses.len() && open.len() < AT_ONCE;
        tokio::select! {
            biased;
            // What is dropped here is given up; the timers may be dropped.
            connected = open.next() => match connected {
                Some(Ok(connection)) => return Ok(connection),
                Some(Err(error)) => {
                    why = why.filter(|why| *why == NetError::AccessDenied).or(Some(error));
                }
                None => return Err(why.map_or(ConnectError::Timeout, ConnectError::from)),
            },
            () = sleep_until(end) => {
                let denied = why.filter(|why| *why == NetError::AccessDenied);
                return Err(denied.map_or(ConnectError::Timeout, ConnectError::from));
            }
            () = sleep(MOMENT), if may_try => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_tried_in_turn() {
        let turn = |text: &str| {
            let addresses: Vec<IpAddr> =
                text.split_whitespace().map(|address| address.parse().unwrap()).collect();
            let all: Vec<_> = in_turn(&addresses).iter().map(ToString::to_string).collect();
            all.join(" ")
        };
        assert_eq!(turn(""), "");
        assert_eq!(turn("::1 ::2 ::3 1.1.1.1 1.1.1.2"), "::1 1.1.1.1 ::2 1.1.1.2 ::3");
        assert_eq!(turn("1.1.1.1 1.1.1.2 ::1"), "1.1.1.1 ::1 1.1.1.2");
        assert_eq!(turn("1.1.1.1 1.1.1.2"), "1.1.1.1 1.1.1.2");
    }
}
