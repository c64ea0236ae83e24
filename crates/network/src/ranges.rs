//! The addresses that a node's pods may have: one range of each family.

use std::net::IpAddr;

use ipnet::IpNet;

/// The longest prefixes that leave an address to give: four addresses, less
/// the network's own, the node's and, with IPv4, the broadcast address.
const LONGEST: (u8, u8) = (30, 126);

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
    let longest = if range.addr().is_ipv4() { LONGEST.0 } else { LONGEST.1 };
    if range.prefix_len() > longest {
        return Err(RangeError::TooSmall { range, longest });
    }
    Ok(range)
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
            (&["10.0.0.0/24", "10.1.0.0/24"], "one range of each family"),
            (&["10.0.0.0/24", "fd00::/64", "fd01::/64"], "3 podCIDRs"),
        ] {
            let error = PodRanges::parse(texts).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
