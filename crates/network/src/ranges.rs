//! The addresses that a node's pods may have: one range of each family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The longest prefixes that leave an address to give: four addresses, less
/// the network's own, the node's and, with IPv4, the broadcast address.
const LONGEST: (u8, u8) = (30, 126);

/// The shortest prefixes that are believed: a whole private network of IPv4
/// (10.0.0.0/8), and what the largest sites have of IPv6. Anything wider is a
/// slip that would lead the node's own connections to pods.
const SHORTEST: (u8, u8) = (8, 16);

/// What no pod can have an address of, and what it is.
const NO_PODS: [(IpNet, &str); 7] = [
    (IpNet::new_assert(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8), "this network"),
    (IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8), "loopback"),
    (IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16), "link-local"),
    (IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4), "multicast"),
    // The loopback, and IPv4 addresses that are written as or translated to IPv6.
    (IpNet::new_assert(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 8), "reserved"),
    (IpNet::new_assert(IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10), "link-local"),
    (IpNet::new_assert(IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8), "multicast"),
];

/// A node's podCIDRs: one range of one family, or one of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRanges {
    first: IpNet,
    second: Option<IpNet>,
}

/// Why a list of podCIDRs cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum RangeError {
    #[error("there is no podCIDR")]
    None,

    #[error("podCIDR {given:?} is not ADDRESS/PREFIX")]
    Malformed { given: String },

    #[error("podCIDR {range} leaves no address for a pod; it may have at most {longest} bits")]
    TooSmall { range: IpNet, longest: u8 },

    #[error(
        "podCIDR {range} has more addresses than a node can be meant to have; it must have at \
         least {shortest} bits"
    )]
    TooLarge { range: IpNet, shortest: u8 },

    #[error("podCIDR {range} has addresses of {of} ({what}), which no pod can have")]
    NoPods { range: IpNet, of: IpNet, what: &'static str },

    #[error("podCIDR {range} contains {address}, which is the address of a node")]
    OfANode { range: IpNet, address: IpAddr },

    #[error("podCIDRs {one} and {other}: there may be one range of each family")]
    OneFamily { one: IpNet, other: IpNet },

    #[error("there are {count} podCIDRs; there may be one range of each family")]
    TooMany { count: usize },
}

impl PodRanges {
    /// Reads `Node.spec.podCIDRs` or the parts of a flag.
    ///
    /// # Errors
    ///
    /// [`RangeError`] names the range that cannot be used.
    pub fn parse<S: AsRef<str>>(texts: &[S]) -> Result<Self, RangeError> {
        let mut ranges = texts.iter().map(|text| one(text.as_ref()));
        let first = ranges.next().ok_or(RangeError::None)??;
        let second = ranges.next().transpose()?;
        if ranges.next().is_some() {
            return Err(RangeError::TooMany { count: texts.len() });
        }
        if let Some(second) = second
            && second.addr().is_ipv4() == first.addr().is_ipv4()
        {
            return Err(RangeError::OneFamily { one: first, other: second });
        }
        Ok(Self { first, second })
    }

    /// The same ranges, with that of the node's own family first.
    #[must_use]
    pub fn led_by(mut self, node: IpAddr) -> Self {
        if let Some(second) = self.second
            && second.addr().is_ipv4() == node.is_ipv4()
        {
            self.second = Some(std::mem::replace(&mut self.first, second));
        }
        self
    }

    /// Each range, in the order of a pod's addresses.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> {
        std::iter::once(self.first).chain(self.second)
    }

    /// The same ranges, if none of `nodes` lies in them: what leads to pods would
    /// lead away from that node.
    ///
    /// # Errors
    ///
    /// [`RangeError::OfANode`] names the first that does.
    pub fn apart_from(self, nodes: &[IpAddr]) -> Result<Self, RangeError> {
        let within = |range: IpNet| nodes.iter().find(move |node| range.contains(*node));
        let found = self.iter().find_map(|range| within(range).map(|address| (range, *address)));
        match found {
            Some((range, address)) => Err(RangeError::OfANode { range, address }),
            None => Ok(self),
        }
    }

    /// Whether an address is of one of the ranges.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.iter().any(|range| range.contains(&address))
    }
}

/// Printed as a list: `10.244.0.0/24, fd00::/64`.
impl std::fmt::Display for PodRanges {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.first)?;
        self.second.map_or(Ok(()), |second| write!(f, ", {second}"))
    }
}

fn one(text: &str) -> Result<IpNet, RangeError> {
    let malformed = || RangeError::Malformed { given: text.to_owned() };
    let range = text.trim().parse::<IpNet>().map_err(|_| malformed())?.trunc();
    let (shortest, longest) =
        if range.addr().is_ipv4() { (SHORTEST.0, LONGEST.0) } else { (SHORTEST.1, LONGEST.1) };
    if range.prefix_len() > longest {
        return Err(RangeError::TooSmall { range, longest });
    }
    if range.prefix_len() < shortest {
        return Err(RangeError::TooLarge { range, shortest });
    }
    let overlaps = |of: &IpNet| of.contains(&range) || range.contains(of);
    match NO_PODS.into_iter().find(|(of, _)| overlaps(of)) {
        Some((of, what)) => Err(RangeError::NoPods { range, of, what }),
        None => Ok(range),
    }
}

/// The address of a range that the node has on its end of the veth pair: the
/// first one after the network's own. Pods see the node's packets come from it.
#[must_use]
pub(crate) fn gateway(range: IpNet) -> IpAddr {
    match range {
        IpNet::V4(range) => IpAddr::V4((u32::from(range.network()) + 1).into()),
        IpNet::V6(range) => IpAddr::V6((u128::from(range.network()) + 1).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_of_each_family_is_taken() {
        let both = PodRanges::parse(&["10.244.1.7/24", "fd00:1::/64"]).unwrap();
        assert_eq!(both.to_string(), "10.244.1.0/24, fd00:1::/64");
        assert_eq!(both.clone().led_by("192.0.2.1".parse().unwrap()), both);
        let led = both.led_by("2001:db8::1".parse().unwrap());
        assert_eq!(led.to_string(), "fd00:1::/64, 10.244.1.0/24");
        let gateways: Vec<_> = led.iter().map(|range| gateway(range).to_string()).collect();
        assert_eq!(gateways, ["fd00:1::1", "10.244.1.1"]);
    }

    #[test]
    fn other_lists_are_refused_by_name() {
        for (texts, word) in [
            (&[][..], "no podCIDR"),
            (&["10.244.0.0"], "10.244.0.0"),
            (&["10.244.0.0/31"], "at most 30 bits"),
            (&["fd00::/127"], "at most 126 bits"),
            (&["0.0.0.0/0"], "at least 8 bits"),
            (&["8.0.0.0/7"], "at least 8 bits"),
            (&["2000::/3"], "at least 16 bits"),
            (&["0.0.0.0/8"], "0.0.0.0/8 (this network), which no pod can have"),
            (&["127.1.0.0/24"], "127.0.0.0/8 (loopback)"),
            (&["169.254.7.0/24"], "169.254.0.0/16 (link-local)"),
            (&["169.0.0.0/8"], "169.254.0.0/16 (link-local)"),
            (&["224.0.1.0/24"], "224.0.0.0/4 (multicast)"),
            (&["::1/120"], "::/8 (reserved)"),
            (&["64:ff9b::a00:0/120"], "::/8 (reserved)"),
            (&["fe80:1::/64"], "fe80::/10 (link-local)"),
            (&["ff02::/64"], "ff00::/8 (multicast)"),
            (&["10.0.0.0/24", "10.1.0.0/24"], "one range of each family"),
            (&["10.0.0.0/24", "fd00::/64", "fd01::/64"], "3 podCIDRs"),
        ] {
            let error = PodRanges::parse(texts).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_node_is_not_a_pod_of_a_range() {
        let ranges = PodRanges::parse(&["10.0.0.0/8", "fd00:1::/64"]).unwrap();
        let nodes = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let apart: Vec<IpAddr> = nodes(&["192.0.2.1", "fd00:2::1"]);
        assert_eq!(ranges.clone().apart_from(&apart), Ok(ranges.clone()));
        for within in ["10.3.0.1", "fd00:1::7"] {
            let all: Vec<IpAddr> = nodes(&["192.0.2.1", within]);
            let error = ranges.clone().apart_from(&all).unwrap_err().to_string();
            assert!(error.contains(&format!("contains {within}")), "{error}");
        }
    }
}
