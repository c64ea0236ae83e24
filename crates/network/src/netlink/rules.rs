//! The rules by which a namespace chooses the tables that it looks for a route
//! in, and what a table refuses.

use std::io;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, IpProtocol, RouteNetlinkMessage,
    route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange},
};

use super::{Netlink, added, address, family, gone};
use crate::plan::everywhere;

/// What the kernel calls the link that its own packets come from.
const ITSELF: &str = "lo";

/// A rule; the one with the lowest place is asked first, and the next if that
/// finds no route. It is about all that fits each of its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) place: u32,
    pub(crate) does: Does,
    /// Only what this namespace sends; else what arrives too.
    pub(crate) is_sent: bool,
    pub(crate) to: Option<IpNet>,
    pub(crate) port: Option<Port>,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Does {
    /// Asks the routes of a table.
    Ask(u8),
    /// Refuses: who sends is told that he may not.
    Refuse,
}

/// A port that packets go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    Tcp(u16),
    Udp(u16),
}

impl Netlink {
    /// The rules that are there, but those that say more than one of ours can; None
    /// if this kernel knows no rules for that family.
    pub(crate) fn rules(&mut self, is_ipv4: bool) -> io::Result<Option<Vec<Rule>>> {
        self.rules_of(family(everywhere(is_ipv4).addr()))
    }

    fn rules_of(&mut self, family: AddressFamily) -> io::Result<Option<Vec<Rule>>> {
        let mut asked = RuleMessage::default();
        asked.header.family = family;
        let all = match self.socket.list(RouteNetlinkMessage::GetRule(asked)) {
            Ok(all) => all,
            Err(error) if knows_no_rules(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let read = |message| match message {
            RouteNetlinkMessage::NewRule(rule) => read_rule(&rule),
            _ => None,
        };
        Ok(Some(all.into_iter().filter_map(read).collect()))
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

    /// The ranges that a table refuses.
    pub(crate) fn refused(&mut self, is_ipv4: bool, table: u8) -> io::Result<Vec<IpNet>> {
        let mut asked = RouteMessage::default();
        asked.header.address_family = family(everywhere(is_ipv4).addr());
        let all = self.socket.list(RouteNetlinkMessage::GetRoute(asked))?;
        let read = |message| match message {
            RouteNetlinkMessage::NewRoute(route)
                if route.header.table == table && route.header.kind == RouteType::Prohibit =>
            {
                Some(refused_range(is_ipv4, &route))
            }
            _ => None,
        };
        Ok(all.into_iter().filter_map(read).collect())
    }

    pub(crate) fn refuse(&mut self, table: u8, range: IpNet) -> io::Result<bool> {
        let message = RouteNetlinkMessage::NewRoute(refusal(table, range));
        added(self.socket.change(message, NLM_F_CREATE | NLM_F_EXCL))
    }

    pub(crate) fn refuse_no_more(&mut self, table: u8, range: IpNet) -> io::Result<()> {
        gone(self.socket.change(RouteNetlinkMessage::DelRoute(refusal(table, range)), 0))
    }
}

/// Whether that is what a kernel says which has no rules for a family. The first
/// where it has some for the other.
fn knows_no_rules(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP))
}

fn refusal(table: u8, range: IpNet) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(range.addr());
    header.destination_prefix_length = range.prefix_len();
    header.protocol = RouteProtocol::Static;
    header.kind = RouteType::Prohibit;
    header.scope = RouteScope::Universe;
    header.table = table;
    if range.prefix_len() > 0 {
        message.attributes = vec![RouteAttribute::Destination(range.network().into())];
    }
    message
}

fn refused_range(is_ipv4: bool, route: &RouteMessage) -> IpNet {
    let to = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(to) => address(to),
        _ => None,
    });
    let range = to.and_then(|to| IpNet::new(to, route.header.destination_prefix_length).ok());
    range.unwrap_or(everywhere(is_ipv4))
}

fn rule_message(is_ipv4: bool, rule: Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    let header = &mut message.header;
    header.family = family(everywhere(is_ipv4).addr());
    message.attributes = vec![RuleAttribute::Priority(rule.place)];
    match rule.does {
        Does::Ask(table) => {
            header.action = RuleAction::ToTable;
            header.table = table;
            message.attributes.push(RuleAttribute::Table(table.into()));
        }
        Does::Refuse => header.action = RuleAction::Prohibit,
    }
    if let Some(to) = rule.to {
        header.dst_len = to.prefix_len();
        message.attributes.push(RuleAttribute::Destination(to.network()));
    }
    if rule.is_sent {
        message.attributes.push(RuleAttribute::Iifname(ITSELF.to_owned()));
    }
    if let Some(port) = rule.port {
        let (protocol, number) = match port {
            Port::Tcp(number) => (IpProtocol::Tcp, number),
            Port::Udp(number) => (IpProtocol::Udp, number),
        };
        let range = RulePortRange { start: number, end: number };
        message.attributes.push(RuleAttribute::IpProtocol(protocol));
        message.attributes.push(RuleAttribute::DestinationPortRange(range));
    }
    message
}

/// The rule of a message; None if it says anything that ours do not.
fn read_rule(message: &RuleMessage) -> Option<Rule> {
    let header = &message.header;
    if header.src_len != 0 || header.tos != 0 || !header.flags.is_empty() {
        return None;
    }
    let (mut place, mut table) = (0, u32::from(header.table));
    let (mut to, mut is_sent, mut protocol, mut number) = (None, false, None, None);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(found) => place = *found,
            RuleAttribute::Table(found) => table = *found,
            RuleAttribute::Destination(found) => {
                to = Some(IpNet::new(*found, header.dst_len).ok()?);
            }
            RuleAttribute::Iifname(found) if found == ITSELF => is_sent = true,
            RuleAttribute::IpProtocol(found) => protocol = Some(*found),
            RuleAttribute::DestinationPortRange(found) if found.start == found.end => {
                number = Some(found.start);
            }
            // Who made it, and that it leaves out no route.
            RuleAttribute::Protocol(_) | RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            _ => return None,
        }
    }
    let does = match header.action {
        RuleAction::ToTable => Does::Ask(table.try_into().ok()?),
        RuleAction::Prohibit => Does::Refuse,
        _ => return None,
    };
    let port = match (protocol, number) {
        (None, None) => None,
        (Some(IpProtocol::Tcp), Some(number)) => Some(Port::Tcp(number)),
        (Some(IpProtocol::Udp), Some(number)) => Some(Port::Udp(number)),
        _ => return None,
    };
    Some(Rule { place, does, is_sent, to, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read_and_what_says_more_is_somebody_elses() {
        let all = Rule { place: 2, does: Does::Ask(255), is_sent: false, to: None, port: None };
        let to = |range: &str| Some(range.parse().unwrap());
        for (is_ipv4, rule) in [
            (true, all),
            (false, all),
            (true, Rule { is_sent: true, to: to("10.244.1.0/24"), ..all }),
            (false, Rule { does: Does::Refuse, is_sent: true, to: to("fe80::/10"), ..all }),
            (true, Rule { is_sent: true, port: Some(Port::Tcp(10250)), ..all }),
            (false, Rule { to: to("fe80::7/128"), port: Some(Port::Udp(53)), ..all }),
        ] {
            let written = rule_message(is_ipv4, rule);
            assert_eq!(read_rule(&written), Some(rule));

            let mut other = written.clone();
            other.header.src_len = 8;
            assert_eq!(read_rule(&other), None, "{other:?}");
            for more in [
                RuleAttribute::FwMark(7),
                RuleAttribute::Iifname("eth0".to_owned()),
                RuleAttribute::SourcePortRange(RulePortRange { start: 1, end: 1 }),
            ] {
                let mut other = written.clone();
                other.attributes.push(more);
                assert_eq!(read_rule(&other), None, "{other:?}");
            }
        }
    }

    #[test]
    fn what_a_table_refuses_is_read_as_it_was_written() {
        for range in ["192.0.2.1/32", "0.0.0.0/0", "2001:db8::1/128", "::/0"] {
            let range: IpNet = range.parse().unwrap();
            let is_ipv4 = range.addr().is_ipv4();
            assert_eq!(refused_range(is_ipv4, &refusal(108, range)), range);
        }
    }
    #[test]
    fn a_family_without_rules_is_told_from_one_that_has_none_left() {
        let mut net = Netlink::open().unwrap();
        let of = |net: &mut Netlink, family| net.rules_of(family).unwrap();
        assert!(of(&mut net, AddressFamily::Inet).is_some_and(|rules| !rules.is_empty()));
        // Every kernel's answer for this one is that of a kernel without
        // CONFIG_IPV6_MULTIPLE_TABLES, or without IPv6, for that: an end with an error.
        assert_eq!(of(&mut net, AddressFamily::Bridge), None);
        // Of one that has no rules at all.
        assert!(knows_no_rules(&io::Error::from_raw_os_error(libc::EOPNOTSUPP)));
        assert!(!knows_no_rules(&io::Error::from_raw_os_error(libc::EPERM)));
    }
}
