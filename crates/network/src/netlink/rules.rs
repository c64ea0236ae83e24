//! The rules by which a namespace chooses the tables that it looks for a route in.

use std::{
    io::{self, ErrorKind},
    net::IpAddr,
};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteHeader, RouteProtocol},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use super::{FIRST_TABLE, Netlink, added, family, gone};

/// What the kernel calls the link that its own packets come from.
const ITSELF: &str = "lo";

/// A rule; the one with the lowest place is asked first, and the next if that
/// finds no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) place: u32,
    pub(crate) asks: Asks,
}

/// Which routes a rule asks for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asks {
    /// For everything those by which addresses are this namespace's own.
    Own,
    /// For what this namespace sends to the range those that lead elsewhere.
    Elsewhere { to: IpNet },
}

impl Netlink {
    /// The rules of such a kind that are there, in whatever place; none of
    /// anybody else's.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] if this kernel knows no rules for that family;
    /// otherwise what it says.
    pub(crate) fn rules(&mut self, is_ipv4: bool) -> io::Result<Vec<Rule>> {
        let mut asked = RuleMessage::default();
        asked.header.family = family(everywhere(is_ipv4));
        let all = self.socket.list(RouteNetlinkMessage::GetRule(asked)).map_err(|error| {
            // Of the two, the first where it knows those of the other family.
            match error.raw_os_error() {
                Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP) => {
                    io::Error::new(ErrorKind::Unsupported, error)
                }
                _ => error,
            }
        })?;
        let read = |message| match message {
            RouteNetlinkMessage::NewRule(rule) => read_rule(&rule),
            _ => None,
        };
        Ok(all.into_iter().filter_map(read).collect())
    }

    pub(crate) fn add_rule(&mut self, is_ipv4: bool, rule: Rule) -> io::Result<bool> {
        let mut message = rule_message(is_ipv4, rule);
        message.attributes.push(RuleAttribute::Protocol(RouteProtocol::Static));
        let message = RouteNetlinkMessage::NewRule(message);
        added(self.socket.change(message, NLM_F_CREATE | NLM_F_EXCL))
    }

    /// Whoever made it: the first is the kernel's own.
    pub(crate) fn remove_rule(&mut self, is_ipv4: bool, rule: Rule) -> io::Result<()> {
        let message = RouteNetlinkMessage::DelRule(rule_message(is_ipv4, rule));
        gone(self.socket.change(message, 0))
    }
}

fn everywhere(is_ipv4: bool) -> IpAddr {
    crate::plan::everywhere(is_ipv4).addr()
}

fn rule_message(is_ipv4: bool, rule: Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    let header = &mut message.header;
    header.family = family(everywhere(is_ipv4));
    header.action = RuleAction::ToTable;
    header.table = match rule.asks {
        Asks::Own => FIRST_TABLE,
        Asks::Elsewhere { .. } => RouteHeader::RT_TABLE_MAIN,
    };
    message.attributes =
        vec![RuleAttribute::Priority(rule.place), RuleAttribute::Table(header.table.into())];
    if let Asks::Elsewhere { to } = rule.asks {
        header.dst_len = to.prefix_len();
        message.attributes.push(RuleAttribute::Destination(to.network().into()));
        message.attributes.push(RuleAttribute::Iifname(ITSELF.to_owned()));
    }
    message
}

/// The rule of a message; None if it asks anything else.
fn read_rule(message: &RuleMessage) -> Option<Rule> {
    let header = &message.header;
    if header.action != RuleAction::ToTable
        || header.src_len != 0
        || header.tos != 0
        || !header.flags.is_empty()
    {
        return None;
    }
    let (mut place, mut table, mut to, mut from) = (0, u32::from(header.table), None, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(found) => place = *found,
            RuleAttribute::Table(found) => table = *found,
            RuleAttribute::Destination(found) => to = Some(*found),
            RuleAttribute::Iifname(found) => from = Some(found.as_str()),
            // Who made it, and that it leaves out no route.
            RuleAttribute::Protocol(_) | RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            _ => return None,
        }
    }
    let asks = match (to, from) {
        (None, None) if table == u32::from(FIRST_TABLE) => Asks::Own,
        (Some(to), Some(ITSELF)) if table == u32::from(RouteHeader::RT_TABLE_MAIN) => {
            Asks::Elsewhere { to: IpNet::new(to, header.dst_len).ok()? }
        }
        _ => return None,
    };
    Some(Rule { place, asks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read_and_all_else_is_somebody_elses() {
        let own = Rule { place: 2, asks: Asks::Own };
        let to =
            |range: &str| Rule { place: 1, asks: Asks::Elsewhere { to: range.parse().unwrap() } };
        for (is_ipv4, rule) in
            [(true, own), (false, own), (true, to("10.244.1.0/24")), (false, to("fd00::/64"))]
        {
            let written = rule_message(is_ipv4, rule);
            assert_eq!(read_rule(&written), Some(rule));

            let mut narrower = written.clone();
            narrower.attributes.push(RuleAttribute::FwMark(7));
            let mut other = written.clone();
            other.header.src_len = 8;
            let mut elsewhere = written;
            elsewhere.attributes.push(RuleAttribute::Table(100));
            for other in [narrower, other, elsewhere] {
                assert_eq!(read_rule(&other), None, "{other:?}");
            }
        }
    }
}
