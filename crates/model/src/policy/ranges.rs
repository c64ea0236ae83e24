//! Ranges of addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Addresses of one family, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AddressRange {
    /// The lowest.
    pub first: IpAddr,
    /// The highest.
    pub last: IpAddr,
}

impl AddressRange {
    /// One address.
    #[must_use]
    pub fn one(address: IpAddr) -> Self {
        Self { first: address, last: address }
    }

    /// Reads an address, or a range in CIDR notation; bits beyond the prefix
    /// count for nothing.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let Some((address, prefix)) = text.split_once('/') else {
            return text.parse().ok().map(Self::one);
        };
        let address: IpAddr = address.parse().ok()?;
        // As `parse` takes it, but for a sign.
        if !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let prefix: u32 = prefix.parse().ok()?;
        match address {
            IpAddr::V4(address) if prefix <= 32 => {
                let (bits, host) = (address.to_bits(), u32::MAX.checked_shr(prefix).unwrap_or(0));
                let (first, last) = (bits & !host, bits | host);
                let [first, last] = [first, last].map(|bits| Ipv4Addr::from_bits(bits).into());
                Some(Self { first, last })
            }
            IpAddr::V6(address) if prefix <= 128 => {
                let (bits, host) = (address.to_bits(), u128::MAX.checked_shr(prefix).unwrap_or(0));
                let (first, last) = (bits & !host, bits | host);
                let [first, last] = [first, last].map(|bits| Ipv6Addr::from_bits(bits).into());
                Some(Self { first, last })
            }
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        }
    }

    /// Whether the address is one of them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        // Addresses of IPv4 come before all of IPv6.
        (self.first..=self.last).contains(&address)
    }

    /// What is left without others.
    pub(super) fn without(self, others: &[Self]) -> Vec<Self> {
        let mut left = Vec::new();
        let mut from = self.first;
        for other in merge(others.to_vec()) {
            if other.last < from || other.first > self.last {
                continue;
            }
            if other.first > from
                && let Some(last) = before(other.first)
            {
                left.push(Self { first: from, last });
            }
            match after(other.last) {
                Some(next) if next <= self.last => from = next,
                Some(_) | None => return left,
            }
        }
        left.push(Self { first: from, last: self.last });
        left
    }
}

/// The same addresses, in order, by as few ranges as can be.
#[must_use]
pub fn merge(mut ranges: Vec<AddressRange>) -> Vec<AddressRange> {
    ranges.sort_unstable();
    let mut merged: Vec<AddressRange> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last)
                if range.first <= last.last
                    || after(last.last).is_some_and(|next| next == range.first) =>
            {
                last.last = last.last.max(range.last);
            }
            Some(_) | None => merged.push(range),
        }
    }
    merged
}

/// Whether an address is in one of merged ranges.
pub(super) fn contain(merged: &[AddressRange], address: IpAddr) -> bool {
    let index = merged.partition_point(|range| range.last < address);
    merged.get(index).is_some_and(|range| range.contains(address))
}

/// The next address of the family.
pub(super) fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => {
            address.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into())
        }
        IpAddr::V6(address) => {
            address.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into())
        }
    }
}

/// The one before it.
fn before(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => {
            address.to_bits().checked_sub(1).map(|bits| Ipv4Addr::from_bits(bits).into())
        }
        IpAddr::V6(address) => {
            address.to_bits().checked_sub(1).map(|bits| Ipv6Addr::from_bits(bits).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(text: &str) -> AddressRange {
        AddressRange::parse(text).unwrap()
    }

    #[test]
    fn a_range_is_read_as_people_write_it() {
        let ends = |text: &str| {
            AddressRange::parse(text).map(|range| format!("{}-{}", range.first, range.last))
        };
        let is = |text: &str| Some(text.to_owned());
        assert_eq!(ends("10.1.2.3"), is("10.1.2.3-10.1.2.3"));
        assert_eq!(ends("10.1.2.3/8"), is("10.0.0.0-10.255.255.255"));
        assert_eq!(ends("10.1.2.3/32"), is("10.1.2.3-10.1.2.3"));
        assert_eq!(ends("0.0.0.0/0"), is("0.0.0.0-255.255.255.255"));
        assert_eq!(ends("fd00::1/127"), is("fd00::-fd00::1"));
        assert_eq!(ends("::/0"), is("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"));
        for none in ["", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "::/129", "10/8", "a"] {
            assert_eq!(ends(none), None, "{none}");
        }
    }

    #[test]
    fn neighbours_become_one_range_and_families_do_not() {
        let all = ["10.0.0.2", "10.0.0.1", "10.0.0.1", "::", "255.255.255.255", "10.0.0.4/30"];
        let merged = merge(all.map(range).to_vec());
        let ends = merged.iter().map(|range| (range.first.to_string(), range.last.to_string()));
        let expected = [
            ("10.0.0.1", "10.0.0.2"),
            ("10.0.0.4", "10.0.0.7"),
            ("255.255.255.255", "255.255.255.255"),
            ("::", "::"),
        ];
        assert!(ends.eq(expected.map(|(first, last)| (first.to_owned(), last.to_owned()))));
    }

    fn small() -> impl Strategy<Value = AddressRange> {
        // Of both families, near the ends and each other.
        (any::<bool>(), any::<bool>(), 0_u32..24, 0_u32..8).prop_map(|(v6, high, from, length)| {
            let (from, to) = (from, (from + length).min(23));
            let ip = |offset: u32| -> IpAddr {
                match (v6, high) {
                    (false, false) => Ipv4Addr::from_bits(offset).into(),
                    (false, true) => Ipv4Addr::from_bits(u32::MAX - 23 + offset).into(),
                    (true, false) => Ipv6Addr::from_bits(offset.into()).into(),
                    (true, true) => Ipv6Addr::from_bits(u128::MAX - 23 + u128::from(offset)).into(),
                }
            };
            AddressRange { first: ip(from), last: ip(to) }
        })
    }

    proptest! {
        #[test]
        fn merging_and_taking_away_keep_to_the_addresses(
            ranges in prop::collection::vec(small(), 0..12),
            others in prop::collection::vec(small(), 0..6),
        ) {
            let merged = merge(ranges.clone());
            let left: Vec<_> = ranges.iter().flat_map(|range| range.without(&others)).collect();
            let left = merge(left);
            for pair in merged.windows(2) {
                let is_apart = after(pair[0].last).is_none_or(|next| next < pair[1].first);
                prop_assert!(is_apart, "{pair:?}");
            }
            for offset in 0..24_u32 {
                for address in [
                    IpAddr::from(Ipv4Addr::from_bits(offset)),
                    Ipv4Addr::from_bits(u32::MAX - 23 + offset).into(),
                    Ipv6Addr::from_bits(offset.into()).into(),
                    Ipv6Addr::from_bits(u128::MAX - 23 + u128::from(offset)).into(),
                ] {
                    let is_in = ranges.iter().any(|range| range.contains(address));
                    let is_out = others.iter().any(|range| range.contains(address));
                    prop_assert_eq!(contain(&merged, address), is_in);
                    prop_assert_eq!(contain(&left, address), is_in && !is_out);
                }
            }
        }
    }
}
