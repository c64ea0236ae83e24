//! What can be set on a socket, and what it then is.
//!
//! Kept as values, because a socket of the system is made only when its way is
//! known, and none for what stays within the pod.

use std::{
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use rustix::{io::Errno, net::sockopt};

use super::{NetError, place::Family};

/// Options of one socket; `None` is the system's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    keep_alive: Option<bool>,
    idle: Option<Duration>,
    interval: Option<Duration>,
    count: Option<u32>,
    hop_limit: Option<u8>,
    receive_buffer: Option<usize>,
    send_buffer: Option<usize>,
}

/// Linux's defaults, for sockets that have no counterpart in the system
/// (tcp(7), ip(7), `net.ipv4.tcp_rmem`, `net.ipv4.tcp_wmem`).
mod linux {
    use std::time::Duration;

    pub(super) const IDLE: Duration = Duration::from_hours(2);
    pub(super) const INTERVAL: Duration = Duration::from_secs(75);
    pub(super) const COUNT: u32 = 9;
    pub(super) const HOP_LIMIT: u8 = 64;
    pub(super) const RECEIVE_BUFFER: usize = 131_072;
    pub(super) const SEND_BUFFER: usize = 16_384;
}

/// The longest keep-alive time that Linux takes (`MAX_TCP_KEEPIDLE`).
const LONGEST: Duration = Duration::from_secs(32_767);

/// The most keep-alive packets that Linux takes (`MAX_TCP_KEEPCNT`).
const MOST_PROBES: u32 = 127;

/// One option and its value. Buffer sizes are in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Setting {
    KeepAlive(bool),
    Idle(Duration),
    Interval(Duration),
    Count(u32),
    HopLimit(u8),
    ReceiveBuffer(u64),
    SendBuffer(u64),
}

impl Options {
    /// Sets one, on `socket` too if there is one.
    ///
    /// # Errors
    ///
    /// [`NetError::InvalidArgument`] for 0; what the system said.
    pub(crate) fn set(
        &mut self,
        setting: Setting,
        family: Family,
        socket: Option<BorrowedFd<'_>>,
    ) -> Result<(), NetError> {
        let more_than = |zero: bool| if zero { Err(NetError::InvalidArgument) } else { Ok(()) };
        let time = |time: Duration| time.clamp(Duration::from_secs(1), LONGEST);
        let size = |size: u64| usize::try_from(size.min(i32::MAX as u64)).unwrap_or(usize::MAX);
        let mut one = Self::default();
        match setting {
            Setting::KeepAlive(on) => one.keep_alive = Some(on),
            Setting::Idle(idle) => {
                more_than(idle.is_zero())?;
                one.idle = Some(time(idle));
            }
            Setting::Interval(interval) => {
                more_than(interval.is_zero())?;
                one.interval = Some(time(interval));
            }
            Setting::Count(count) => {
                more_than(count == 0)?;
                one.count = Some(count.min(MOST_PROBES));
            }
            Setting::HopLimit(limit) => {
                more_than(limit == 0)?;
                one.hop_limit = Some(limit);
            }
            Setting::ReceiveBuffer(bytes) => {
                more_than(bytes == 0)?;
                one.receive_buffer = Some(size(bytes));
            }
            Setting::SendBuffer(bytes) => {
                more_than(bytes == 0)?;
                one.send_buffer = Some(size(bytes));
            }
        }
        if let Some(socket) = socket {
            one.apply(socket, family)?;
        }
        *self = Self {
            keep_alive: one.keep_alive.or(self.keep_alive),
            idle: one.idle.or(self.idle),
            interval: one.interval.or(self.interval),
            count: one.count.or(self.count),
            hop_limit: one.hop_limit.or(self.hop_limit),
            receive_buffer: one.receive_buffer.or(self.receive_buffer),
            send_buffer: one.send_buffer.or(self.send_buffer),
        };
        Ok(())
    }

    /// Sets on a socket of the system what was set here.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub(crate) fn apply(&self, socket: impl AsFd, family: Family) -> Result<(), NetError> {
        let socket = socket.as_fd();
        let each = |done: Option<Result<(), Errno>>| done.unwrap_or(Ok(()));
        each(self.keep_alive.map(|on| sockopt::set_socket_keepalive(socket, on)))?;
        each(self.idle.map(|idle| sockopt::set_tcp_keepidle(socket, idle)))?;
        each(self.interval.map(|interval| sockopt::set_tcp_keepintvl(socket, interval)))?;
        each(self.count.map(|count| sockopt::set_tcp_keepcnt(socket, count)))?;
        each(self.hop_limit.map(|limit| match family {
            Family::V4 => sockopt::set_ip_ttl(socket, limit.into()),
            Family::V6 => sockopt::set_ipv6_unicast_hops(socket, Some(limit)),
        }))?;
        each(self.receive_buffer.map(|bytes| sockopt::set_socket_recv_buffer_size(socket, bytes)))?;
        each(self.send_buffer.map(|bytes| sockopt::set_socket_send_buffer_size(socket, bytes)))?;
        Ok(())
    }

    pub(crate) fn keep_alive(&self) -> bool {
        self.keep_alive.unwrap_or(false)
    }

    pub(crate) fn idle(&self) -> Duration {
        self.idle.unwrap_or(linux::IDLE)
    }

    pub(crate) fn interval(&self) -> Duration {
        self.interval.unwrap_or(linux::INTERVAL)
    }

    pub(crate) fn count(&self) -> u32 {
        self.count.unwrap_or(linux::COUNT)
    }

    pub(crate) fn hop_limit(&self) -> u8 {
        self.hop_limit.unwrap_or(linux::HOP_LIMIT)
    }

    /// In bytes. The system doubles what it is told, and then tells that; here
    /// it is what was asked for, or what the system really took.
    pub(crate) fn receive_buffer(&self, socket: Option<BorrowedFd<'_>>) -> u64 {
        let real = socket.and_then(|socket| sockopt::socket_recv_buffer_size(socket).ok());
        let kept = self.receive_buffer.unwrap_or(linux::RECEIVE_BUFFER);
        real.map_or(kept, |doubled| doubled / 2) as u64
    }

    /// As [`receive_buffer`](Self::receive_buffer).
    pub(crate) fn send_buffer(&self, socket: Option<BorrowedFd<'_>>) -> u64 {
        let real = socket.and_then(|socket| sockopt::socket_send_buffer_size(socket).ok());
        let kept = self.send_buffer.unwrap_or(linux::SEND_BUFFER);
        real.map_or(kept, |doubled| doubled / 2) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_may_be_zero_and_what_is_too_much_is_less() {
        let mut options = Options::default();
        let zero = [
            Setting::Idle(Duration::ZERO),
            Setting::Interval(Duration::ZERO),
            Setting::Count(0),
            Setting::HopLimit(0),
            Setting::ReceiveBuffer(0),
            Setting::SendBuffer(0),
        ];
        for setting in zero {
            let refused = options.set(setting, Family::V4, None);
            assert_eq!(refused, Err(NetError::InvalidArgument), "{setting:?}");
        }
        assert_eq!(options, Options::default());
        for setting in [
            Setting::Idle(Duration::MAX),
            Setting::Interval(Duration::from_nanos(1)),
            Setting::Count(u32::MAX),
            Setting::SendBuffer(u64::MAX),
        ] {
            options.set(setting, Family::V4, None).unwrap();
        }
        assert_eq!((options.idle(), options.count()), (LONGEST, MOST_PROBES));
        assert_eq!(options.interval(), Duration::from_secs(1));
        assert_eq!(options.hop_limit(), 64);
    }

    #[test]
    fn a_real_socket_has_what_was_set_before_it_was_made() {
        let mut options = Options::default();
        for setting in [
            Setting::KeepAlive(true),
            Setting::Idle(Duration::from_secs(77)),
            Setting::HopLimit(9),
            Setting::SendBuffer(20_000),
        ] {
            options.set(setting, Family::V4, None).unwrap();
        }
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        options.apply(&socket, Family::V4).unwrap();
        assert!(sockopt::socket_keepalive(&socket).unwrap());
        assert_eq!(sockopt::tcp_keepidle(&socket).unwrap(), Duration::from_secs(77));
        assert_eq!(sockopt::ip_ttl(&socket).unwrap(), 9);
        assert_eq!(options.send_buffer(Some(socket.as_fd())), 20_000);
    }
}
