//! Which pod has which address. Pure: the caller brings the clock and keeps
//! what must outlive it.
//!
//! Addresses are given in turn (next fit), so that one comes round again only
//! after all others; and none is given again before it has rested for
//! [`REST`], so that who still speaks to the pod that had it does not reach
//! another.

use std::{
    collections::{BTreeMap, HashMap, VecDeque, hash_map::Entry},
    net::IpAddr,
    time::Duration,
};

use ipnet::IpNet;
use krustlet_model::PodUid;

use crate::ranges::PodRanges;

/// How long an address is not given again after it was let go: longer than
/// connections, name servers' answers and endpoints of Services usually
/// outlive a pod.
pub const REST: Duration = Duration::from_mins(1);

/// Why a pod gets no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum AddressError {
    #[error("no address left in {range}: {}", in_words(*.range, *.held, *.resting))]
    Full { range: IpNet, held: usize, resting: usize },

    #[error("address {address} is pod {owner}'s")]
    Taken { address: IpAddr, owner: PodUid },

    #[error("this node has no range of addresses for pods")]
    NoRange,

    #[error("it is not known yet which addresses the pods have that go on")]
    Unrestored,
}

fn in_words(range: IpNet, held: usize, resting: usize) -> String {
    let held = match held {
        1 => "1 pod has one".to_owned(),
        held => format!("{held} pods have one"),
    };
    match resting {
        0 => format!(
            "{held}; give the node a larger podCIDR, or let it have at most {} (maxPods)",
            usable(range)
        ),
        resting => {
            format!("{held}, {resting} were let go less than {} s ago", REST.as_secs())
        }
    }
}

/// The addresses of a node's pods. Times are since an origin that the caller
/// chooses; they do not go back.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    ranges: Vec<Turn>,
    /// By pod, in the order of the ranges.
    pods: BTreeMap<PodUid, Vec<IpAddr>>,
    owners: HashMap<IpAddr, PodUid>,
    /// Let go lately, the oldest first.
    freed: VecDeque<(Duration, IpAddr)>,
    /// How often each is there: an address may have been noted twice.
    resting: HashMap<IpAddr, u32>,
}

/// A range, and the address that is looked at next.
#[derive(Clone, Debug)]
struct Turn {
    range: IpNet,
    next: u128,
}

impl Addresses {
    /// Takes these ranges for pods that have no address yet. Pods keep what
    /// they have.
    pub fn set_ranges(&mut self, ranges: &PodRanges) {
        let old = std::mem::take(&mut self.ranges);
        let turn = |range: IpNet| {
            let held = old.iter().find(|turn| turn.range == range);
            held.cloned().unwrap_or(Turn { range, next: 0 })
        };
        self.ranges = ranges.iter().map(turn).collect();
    }

    /// The pod's addresses: one of each range, the same ones however often it
    /// asks.
    ///
    /// # Errors
    ///
    /// [`AddressError::Full`] names the range that has none left.
    pub fn allocate(&mut self, pod: &PodUid, now: Duration) -> Result<Vec<IpAddr>, AddressError> {
        if let Some(held) = self.pods.get(pod) {
            return Ok(held.clone());
        }
        if self.ranges.is_empty() {
            return Err(AddressError::NoRange);
        }
        self.wake(now);
        let mut turns = std::mem::take(&mut self.ranges);
        let given: Result<Vec<_>, _> = turns.iter_mut().map(|turn| self.take(turn)).collect();
        self.ranges = turns;
        let given = given?;
        self.enter(pod, &given);
        Ok(given)
    }

    /// The next address of a range that is neither held nor resting.
    fn take(&self, turn: &mut Turn) -> Result<IpAddr, AddressError> {
        let count = usable(turn.range);
        // One more than can be in the way; so many steps end on a free one.
        let in_the_way = self.owners.len() + self.resting.len();
        let steps = count.min(in_the_way as u128 + 1);
        for _ in 0..steps {
            let address = nth(turn.range, turn.next % count);
            turn.next = (turn.next + 1) % count;
            if !self.owners.contains_key(&address) && !self.resting.contains_key(&address) {
                return Ok(address);
            }
        }
        let range = turn.range;
        let of_range = |address: &&IpAddr| range.contains(*address);
        Err(AddressError::Full {
            range,
            held: self.owners.keys().filter(of_range).count(),
            resting: self.resting.keys().filter(of_range).count(),
        })
    }

    /// Gives a pod back what it had before, whatever the ranges are now.
    ///
    /// # Errors
    ///
    /// [`AddressError::Taken`]; the pod then has nothing.
    pub fn restore(&mut self, pod: &PodUid, addresses: &[IpAddr]) -> Result<(), AddressError> {
        for address in addresses {
            if let Some(owner) = self.owners.get(address).filter(|owner| *owner != pod) {
                return Err(AddressError::Taken { address: *address, owner: owner.clone() });
            }
        }
        self.enter(pod, addresses);
        Ok(())
    }

    fn enter(&mut self, pod: &PodUid, addresses: &[IpAddr]) {
        for address in addresses {
            self.owners.insert(*address, pod.clone());
        }
        self.pods.insert(pod.clone(), addresses.to_vec());
    }

    /// Lets a pod's addresses go, which rest from now on; returns them.
    pub fn release(&mut self, pod: &PodUid, now: Duration) -> Vec<IpAddr> {
        let Some(addresses) = self.pods.remove(pod) else { return Vec::new() };
        self.wake(now);
        for address in &addresses {
            self.owners.remove(address);
            self.rest(*address, now);
        }
        addresses
    }

    /// Takes note that an address was let go at this moment, by an agent before
    /// this one. In the order of time.
    pub fn rest(&mut self, address: IpAddr, since: Duration) {
        self.freed.push_back((since, address));
        *self.resting.entry(address).or_default() += 1;
    }

    /// Which addresses rest, and since when.
    pub fn resting(&self) -> impl Iterator<Item = (Duration, IpAddr)> + '_ {
        self.freed.iter().copied()
    }

    /// All addresses that pods have.
    pub fn held(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.owners.keys().copied()
    }

    /// What a pod has.
    #[must_use]
    pub fn of(&self, pod: &PodUid) -> Option<&[IpAddr]> {
        self.pods.get(pod).map(Vec::as_slice)
    }

    /// Forgets those that have rested long enough.
    pub fn wake(&mut self, now: Duration) {
        while let Some(&(since, address)) = self.freed.front()
            && now.saturating_sub(since) >= REST
        {
            self.freed.pop_front();
            if let Entry::Occupied(mut times) = self.resting.entry(address) {
                *times.get_mut() -= 1;
                if *times.get() == 0 {
                    times.remove();
                }
            }
        }
    }
}

/// How many addresses of a range pods can have: not the network's own, not the
/// node's, and with IPv4 not the broadcast address.
fn usable(range: IpNet) -> u128 {
    let bits = u32::from(range.max_prefix_len() - range.prefix_len());
    let all = 1_u128.checked_shl(bits).unwrap_or(u128::MAX);
    all - if range.addr().is_ipv4() { 3 } else { 2 }
}

/// The address at this place among the usable ones.
fn nth(range: IpNet, place: u128) -> IpAddr {
    match range {
        IpNet::V4(range) => {
            let place = u32::try_from(place).unwrap_or(u32::MAX);
            IpAddr::V4(u32::from(range.network()).wrapping_add(2).wrapping_add(place).into())
        }
        IpNet::V6(range) => {
            IpAddr::V6(u128::from(range.network()).wrapping_add(2).wrapping_add(place).into())
        }
    }
}

#[cfg(test)]
mod tests;
