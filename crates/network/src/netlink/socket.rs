//! One question to the kernel at a time, and its answers.

use std::{io, os::fd::OwnedFd, time::Duration};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink,
    recv, send, socket_with, sockopt,
};

/// Longer than any message that comes in one piece: the kernel's own pieces of
/// a list are of 32 KiB at most (`NLMSG_GOODSIZE`).
const LONGEST: usize = 64 << 10;

/// Time for an answer. The kernel gives it while the question is sent; this is
/// for a defect of ours.
const LIMIT: Duration = Duration::from_secs(10);

/// Groups of news by their numbers in `linux/rtnetlink.h`: links, addresses and
/// routes of both families.
const GROUPS: [u32; 5] = [1, 5, 7, 9, 11];

/// A netlink socket of the namespace of the thread that opened it.
#[derive(Debug)]
pub(super) struct Socket {
    socket: OwnedFd,
    last: u32,
}

impl Socket {
    pub(super) fn open() -> io::Result<Self> {
        // No protocol given is NETLINK_ROUTE.
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(LIMIT))?;
        Ok(Self { socket, last: 0 })
    }

    /// Has something changed.
    pub(super) fn change(&mut self, what: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.exchange(what, flags | NLM_F_ACK, |_| {})
    }

    /// Asks for one thing.
    pub(super) fn ask(&mut self, what: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        let mut found = None;
        // With an acknowledgement an empty answer ends too.
        self.exchange(what, NLM_F_ACK, |answer| found = Some(answer))?;
        found.ok_or_else(|| io::Error::other("the kernel gave no answer"))
    }

    /// Asks for all there are.
    pub(super) fn list(
        &mut self,
        what: RouteNetlinkMessage,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut found = Vec::new();
        self.exchange(what, NLM_F_DUMP, |answer| found.push(answer))?;
        Ok(found)
    }

    fn exchange(
        &mut self,
        what: RouteNetlinkMessage,
        flags: u16,
        mut take: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<()> {
        self.last = self.last.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags | NLM_F_REQUEST;
        header.sequence_number = self.last;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(what));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(&self.socket, &bytes, SendFlags::empty())?;

        let mut buffer = vec![0; LONGEST];
        loop {
            let (read, _) = recv(&self.socket, &mut buffer[..], RecvFlags::empty())?;
            let mut rest = &buffer[..read];
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(io::Error::other)?;
                let length = usize::try_from(answer.header.length).unwrap_or(usize::MAX);
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                if answer.header.sequence_number != self.last {
                    // To a question that was given up.
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(answer) => take(answer),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => return Ok(()),
                }
            }
        }
    }
}

/// Opens a socket that hears of changes in the calling thread's namespace.
pub(crate) fn notices() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    let groups = GROUPS.iter().fold(0, |all, group| all | 1 << (group - 1));
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}
