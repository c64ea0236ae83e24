//! One question to the kernel at a time, and its answers.

use std::{io, net::IpAddr, os::fd::OwnedFd, time::Duration};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute},
};
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

/// Groups of news by their numbers in `linux/rtnetlink.h`: links, neighbours;
/// addresses, routes, rules and settings of links (forwarding is one), each of
/// both families.
const GROUPS: [u32; 10] = [1, 3, 5, 9, 7, 11, 8, 19, 24, 25];

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
                    // A list that could not be made, or was broken off, ends so.
                    NetlinkPayload::Done(end) if end.code < 0 => {
                        return Err(io::Error::from_raw_os_error(end.code.saturating_neg()));
                    }
                    _ => return Ok(()),
                }
            }
        }
    }
}

/// The neighbour that word of a change is about; None if it is about anything
/// else, or cannot be read.
pub(crate) fn neighbour_of(word: &[u8]) -> Option<IpAddr> {
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(word).ok()?;
    // There is more in it.
    if usize::try_from(message.header.length).ok()?.next_multiple_of(4) < word.len() {
        return None;
    }
    let NetlinkPayload::InnerMessage(
        RouteNetlinkMessage::NewNeighbour(neighbour) | RouteNetlinkMessage::DelNeighbour(neighbour),
    ) = message.payload
    else {
        return None;
    };
    neighbour.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
            Some(IpAddr::V4(*address))
        }
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
            Some(IpAddr::V6(*address))
        }
        _ => None,
    })
}

/// Opens a socket that hears of changes in the calling thread's namespace.
pub(crate) fn notices() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    let groups = GROUPS.iter().fold(0, |all, group| all | 1 << (group - 1));
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::{link::LinkMessage, neighbour::NeighbourMessage};

    use super::*;

    fn word(of: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), of.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    #[test]
    fn word_of_a_neighbour_is_known_by_its_address_and_no_other_word_is_one() {
        let message = |address: &str| {
            let address: IpAddr = address.parse().unwrap();
            let mut neighbour = NeighbourMessage::default();
            neighbour.header.family = if address.is_ipv4() {
                netlink_packet_route::AddressFamily::Inet
            } else {
                netlink_packet_route::AddressFamily::Inet6
            };
            neighbour.attributes = vec![NeighbourAttribute::Destination(address.into())];
            neighbour
        };
        for address in ["169.254.1.2", "fe80::2"] {
            let found = word(RouteNetlinkMessage::DelNeighbour(message(address)));
            assert_eq!(neighbour_of(&found), address.parse().ok());
            let twice = [found.clone(), found.clone()].concat();
            assert_eq!(neighbour_of(&twice), None, "the rest may be about anything");
            assert_eq!(neighbour_of(&found[..found.len() / 2]), None);
        }
        let link = word(RouteNetlinkMessage::NewLink(LinkMessage::default()));
        assert_eq!(neighbour_of(&link), None);
        assert_eq!(neighbour_of(&[]), None);
    }
}
