//! Whom a pod's policies let in, as a program for the system's packet filter.
//!
//! ```text
//! is it the first packet of a connection (SYN, no ACK)? ──no──▶ keep
//!    │ then who sends it, four bytes of the address at a time:
//!    ├─ in a range by these bytes alone ──▶ keep
//!    ├─ at an end of one: look at the next four
//!    └─ else ──▶ drop
//! ```
//!
//! Only first packets are looked at, for what is accepted keeps the filter of its
//! listener: a connection that is open goes on whatever becomes of the policies.
//!
//! Ours, for what assembles such programs (`seccompiler`, `bpf-script`) knows system
//! calls or whole languages, and these are comparisons.
//!
//! Source: Linux, `Documentation/networking/filter.rst`; the filter of a TCP socket
//! sees a packet from its TCP header on (`tcp_filter` in `net/ipv4/tcp_ipv4.c`).

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use krustlet_model::{
    policy::{AddressRange, PodPolicy, merge},
    services::Transport,
};
use krustlet_protocol::PodNetwork;

/// What to do, how many steps to leave out, and with what value.
pub(super) type Step = libc::sock_filter;

/// The longest program. The system takes one of twice this; each takes 16 bytes for
/// each step of the system's memory, and on systems older than 6.9 what sockets may
/// have of it ends near here (`net.core.optmem_max`).
const MOST_STEPS: usize = 2048;

/// Keeps the whole packet.
const KEEP: u32 = u32::MAX;

/// Drops it.
const DROP: u32 = 0;

/// Where flags are in a TCP header, and those that make a first packet (RFC 9293).
const FLAGS: u32 = 13;
const SYN: u32 = 0x02;
const ACK: u32 = 0x10;

/// The family of addresses that a socket is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Where the source begins in a packet's IP header (RFC 791, RFC 8200).
    fn source(self) -> u32 {
        let within = match self {
            Self::V4 => 12,
            Self::V6 => 8,
        };
        libc::SKF_NET_OFF.cast_unsigned() + within
    }
}

/// Who may come in to a pod: what of its network says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Guard {
    /// Without what it says of going out.
    policy: PodPolicy,
    /// The pod's addresses, which it may share.
    addresses: Vec<IpAddr>,
    is_host: bool,
}

impl Guard {
    /// None if nothing is known of the pod's policies.
    pub(crate) fn of(network: &PodNetwork) -> Option<Self> {
        let PodPolicy { ingress, node, .. } = network.policy.as_ref()?;
        let policy = PodPolicy { ingress: ingress.clone(), egress: None, node: node.clone() };
        Some(Self { policy, addresses: network.addresses.clone(), is_host: network.is_host })
    }

    /// Whether an address is the pod's alone: there policies speak of the port that
    /// a socket is bound to.
    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        !self.is_host && self.addresses.contains(&address)
    }

    /// Who may connect to a port of the pod, in order and without overlap; anybody if
    /// none. The pod itself may, and the node, at whose loopback a port of the node's
    /// may lead here: as `policy::lets_in` of the sandbox has it.
    fn sources(&self, port: u16) -> Option<Vec<AddressRange>> {
        let mut sources = self.policy.sources(Transport::Tcp, port)?;
        if !self.is_host {
            sources.extend(self.addresses.iter().copied().map(AddressRange::one));
        }
        let last = Ipv4Addr::new(127, 255, 255, 255);
        sources.push(AddressRange { first: Ipv4Addr::new(127, 0, 0, 0).into(), last: last.into() });
        sources.push(AddressRange::one(Ipv6Addr::LOCALHOST.into()));
        Some(merge(sources))
    }

    /// Drops the first packet of whoever may not connect to a port. None if anybody
    /// may, or if it would be too long.
    pub(super) fn program(&self, family: Family, port: u16) -> Option<Vec<Step>> {
        let sources = self.sources(port)?;
        let of_family = sources.into_iter().filter(|range| Family::of(range.first) == family);
        let ends: Vec<_> = of_family.map(|range| (words(range.first), words(range.last))).collect();
        let spans: Vec<_> = ends.iter().map(|(first, last)| Span { first, last }).collect();
        let mut steps = vec![
            load(libc::BPF_B, FLAGS),
            step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, [0, 0], SYN | ACK),
            compare(libc::BPF_JEQ, SYN, [1, 0]),
            answer(KEEP),
        ];
        steps.extend(level(family.source(), &spans));
        (steps.len() <= MOST_STEPS).then_some(steps)
    }
}

/// A guard's programs, each made once: a pod may listen to one port at many sockets.
pub(super) struct Programs<'a> {
    pub(super) guard: &'a Guard,
    made: HashMap<(Family, u16), Option<Vec<Step>>>,
}

impl<'a> Programs<'a> {
    pub(super) fn of(guard: &'a Guard) -> Self {
        Self { guard, made: HashMap::new() }
    }

    /// As [`Guard::program`].
    pub(super) fn get(&mut self, family: Family, port: u16) -> Option<&[Step]> {
        let make = || self.guard.program(family, port);
        self.made.entry((family, port)).or_insert_with(make).as_deref()
    }
}

/// Addresses from one to another, of which so many words are still to be compared.
#[derive(Clone, Copy)]
struct Span<'a> {
    first: &'a [u32],
    last: &'a [u32],
}

/// An address, four bytes at a time.
fn words(address: IpAddr) -> Vec<u32> {
    match address {
        IpAddr::V4(address) => vec![address.to_bits()],
        IpAddr::V6(address) => {
            let bits = address.to_bits().to_be_bytes();
            bits.as_chunks().0.iter().map(|word| u32::from_be_bytes(*word)).collect()
        }
    }
}

/// What one word says of spans.
#[derive(Default)]
struct Split<'a> {
    /// All addresses with such a word are in one.
    whole: Vec<RangeInclusive<u32>>,
    /// Of those with this word only some.
    part: Vec<(u32, Vec<Span<'a>>)>,
}

impl<'a> Split<'a> {
    /// Of spans in order and without overlap.
    fn of(spans: &[Span<'a>]) -> Self {
        const LOWEST: &[u32] = &[0; 3];
        const HIGHEST: &[u32] = &[u32::MAX; 3];
        let mut split = Self::default();
        for span in spans {
            let ([low, first @ ..], [high, last @ ..]) = (span.first, span.last) else { continue };
            let (lowest, highest) = (&LOWEST[..first.len()], &HIGHEST[..last.len()]);
            let (begins, ends) = (first == lowest, last == highest);
            if low == high {
                if begins && ends {
                    split.whole.push(*low..=*high);
                } else {
                    split.add(*low, Span { first, last });
                }
                continue;
            }
            if !begins {
                split.add(*low, Span { first, last: highest });
            }
            // The first word is below the last.
            let between = low + u32::from(!begins)..=high - u32::from(!ends);
            if !between.is_empty() {
                split.whole.push(between);
            }
            if !ends {
                split.add(*high, Span { first: lowest, last });
            }
        }
        split
    }

    fn add(&mut self, word: u32, span: Span<'a>) {
        match self.part.last_mut() {
            Some((last, spans)) if *last == word => spans.push(span),
            Some(_) | None => self.part.push((word, vec![span])),
        }
    }
}

/// Answers for a source by its word at a place, and those after it.
fn level(at: u32, spans: &[Span<'_>]) -> Vec<Step> {
    /// Ranges that share an answer, two steps each: what a step can leave out.
    const TOGETHER: usize = 100;
    let Split { whole, part } = Split::of(spans);
    let mut steps = Vec::new();
    if !(whole.is_empty() && part.is_empty()) {
        steps.push(load(libc::BPF_W, at));
    }
    for some in whole.chunks(TOGETHER) {
        let length = |range: &RangeInclusive<u32>| if range.start() == range.end() { 1 } else { 2 };
        // What the first of them leaves out: the others, and what leaves the answer out.
        let mut to_answer: u8 = some.iter().map(length).sum();
        for range in some {
            if range.start() == range.end() {
                steps.push(compare(libc::BPF_JEQ, *range.start(), [to_answer, 0]));
                to_answer -= 1;
            } else {
                steps.push(compare(libc::BPF_JGE, *range.start(), [0, 1]));
                steps.push(compare(libc::BPF_JGT, *range.end(), [0, to_answer - 1]));
                to_answer -= 2;
            }
        }
        steps.push(step(libc::BPF_JMP | libc::BPF_JA, [0, 0], 1));
        steps.push(answer(KEEP));
    }
    for (word, spans) in part {
        let rest = level(at + 4, &spans);
        // No program is that long.
        let length = u32::try_from(rest.len()).unwrap_or(u32::MAX);
        steps.push(compare(libc::BPF_JEQ, word, [1, 0]));
        steps.push(step(libc::BPF_JMP | libc::BPF_JA, [0, 0], length));
        steps.extend(rest);
    }
    steps.push(answer(DROP));
    steps
}

const fn step(code: u32, [yes, no]: [u8; 2], value: u32) -> Step {
    // The codes have 16 bits.
    #[expect(clippy::cast_possible_truncation, reason = "see above")]
    let code = code as u16;
    Step { code, jt: yes, jf: no, k: value }
}

/// Takes a byte or a word of the packet.
const fn load(size: u32, at: u32) -> Step {
    step(libc::BPF_LD | size | libc::BPF_ABS, [0, 0], at)
}

const fn answer(with: u32) -> Step {
    step(libc::BPF_RET | libc::BPF_K, [0, 0], with)
}

/// Leaves out so many steps if it holds, or if not.
const fn compare(how: u32, value: u32, to: [u8; 2]) -> Step {
    step(libc::BPF_JMP | how | libc::BPF_K, to, value)
}

#[cfg(test)]
mod tests;
