//! Programs, carried out as the system does.

use krustlet_model::policy::{PolicyRule, PortRange};
use proptest::prelude::*;

use super::*;

/// The flags of a first packet.
const SYN_ONLY: u8 = 0x02;

/// A packet as the filter of a TCP socket sees it.
struct Packet {
    ip: Vec<u8>,
    tcp: [u8; 20],
}

impl Packet {
    fn new(source: IpAddr, flags: u8) -> Self {
        let mut ip = match source {
            IpAddr::V4(_) => vec![0xaa; 20],
            IpAddr::V6(_) => vec![0xaa; 40],
        };
        match source {
            IpAddr::V4(source) => ip[12..16].copy_from_slice(&source.octets()),
            IpAddr::V6(source) => ip[8..24].copy_from_slice(&source.octets()),
        }
        let mut tcp = [0xaa; 20];
        tcp[13] = flags;
        Self { ip, tcp }
    }

    fn bytes(&self, at: u32, length: usize) -> u32 {
        let network = libc::SKF_NET_OFF.cast_unsigned();
        let (from, at) =
            if at >= network { (&self.ip[..], at - network) } else { (&self.tcp[..], at) };
        let at = usize::try_from(at).unwrap();
        from[at..at + length].iter().fold(0, |bytes, byte| bytes << 8 | u32::from(*byte))
    }
}

/// Whether a program keeps a packet: the few instructions that it has, as the kernel
/// carries them out (`___bpf_prog_run` in `kernel/bpf/core.c`).
fn keeps(steps: &[Step], packet: &Packet) -> bool {
    let (mut value, mut next) = (0, 0);
    loop {
        let Step { code, jt, jf, k } = steps[next];
        next += 1;
        let code = u32::from(code);
        let holds = match code {
            code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                value = packet.bytes(k, 4);
                continue;
            }
            code if code == libc::BPF_LD | libc::BPF_B | libc::BPF_ABS => {
                value = packet.bytes(k, 1);
                continue;
            }
            code if code == libc::BPF_ALU | libc::BPF_AND | libc::BPF_K => {
                value &= k;
                continue;
            }
            code if code == libc::BPF_JMP | libc::BPF_JA => {
                next += usize::try_from(k).unwrap();
                continue;
            }
            code if code == libc::BPF_RET | libc::BPF_K => return k == KEEP,
            code if code == libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K => value > k,
            code if code == libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K => value >= k,
            code if code == libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K => value == k,
            code => panic!("an instruction {code} that no program has"),
        };
        next += usize::from(if holds { jt } else { jf });
    }
}

/// Few addresses whose words meet often, high and low.
fn address() -> impl Strategy<Value = IpAddr> {
    let word = prop_oneof![0..4_u32, (u32::MAX - 2)..=u32::MAX, Just(0x7f00_0001)];
    (any::<bool>(), prop::collection::vec(word, 4)).prop_map(|(is_v6, words)| {
        let bits = words.iter().fold(0, |bits, word| bits << 32 | u128::from(*word));
        if is_v6 { Ipv6Addr::from_bits(bits).into() } else { Ipv4Addr::from_bits(words[0]).into() }
    })
}

fn range() -> impl Strategy<Value = AddressRange> {
    let one = address().prop_map(AddressRange::one);
    let many = (address(), address())
        .prop_filter("one family", |(one, other)| Family::of(*one) == Family::of(*other))
        .prop_map(|(one, other)| AddressRange { first: one.min(other), last: one.max(other) });
    prop_oneof![one, many]
}

fn rule() -> impl Strategy<Value = PolicyRule> {
    let peers = prop::option::weighted(0.9, prop::collection::vec(range(), 0..12).prop_map(merge));
    let port = (any::<bool>(), 0..4_u16, 0..4_u16).prop_map(|(is_tcp, one, other)| PortRange {
        protocol: if is_tcp { Transport::Tcp } else { Transport::Udp },
        first: one.min(other),
        last: one.max(other),
    });
    let ports = prop::option::of(prop::collection::vec(port, 0..3));
    (peers, ports).prop_map(|(peers, ports)| PolicyRule { peers, ports })
}

fn network() -> impl Strategy<Value = PodNetwork> {
    let ingress = prop::option::weighted(0.9, prop::collection::vec(rule(), 0..4));
    let some = || prop::collection::vec(address(), 0..2);
    (ingress, some(), some(), any::<bool>()).prop_map(|(ingress, node, addresses, is_host)| {
        let policy = Some(PodPolicy { ingress, egress: None, node });
        PodNetwork { policy, addresses, is_host, ..PodNetwork::default() }
    })
}

/// What a sandbox says of who connects: `lets_in` of its `net/policy.rs`.
fn lets_in(network: &PodNetwork, from: IpAddr, port: u16) -> bool {
    let is_own = !network.is_host && network.addresses.contains(&from);
    let policy = network.policy.as_ref().unwrap();
    is_own || from.is_loopback() || policy.lets_in(Transport::Tcp, from, port)
}

/// As it arrives at a socket of its family: one of IPv6 hears no IPv4.
fn is_real(source: &IpAddr) -> bool {
    source.to_canonical() == *source
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn who_is_let_in_is_who_the_policies_let_in(
        network in network(),
        sources in prop::collection::vec(address().prop_filter("mapped", is_real), 1..20),
        port in 0..5_u16,
        flags: u8,
    ) {
        let guard = Guard::of(&network).unwrap();
        for source in sources {
            let program = guard.program(Family::of(source), port);
            prop_assert!(
                program.is_some() || network.policy.as_ref().unwrap().lets_in(Transport::Tcp, source, port),
                "none where somebody is kept out"
            );
            let Some(program) = program else { continue };
            let is_kept = |flags| keeps(&program, &Packet::new(source, flags));
            // As clients send it, and with what the network may say of itself (RFC 3168).
            for first in [SYN_ONLY, 0xc2] {
                prop_assert_eq!(is_kept(first), lets_in(&network, source, port), "{}", source);
            }
            if flags & 0x12 != SYN_ONLY {
                prop_assert!(is_kept(flags), "what is open goes on");
            }
        }
    }
}

fn closed_but_for(peers: Vec<AddressRange>) -> Guard {
    let ingress = Some(vec![PolicyRule { peers: Some(merge(peers)), ports: None }]);
    let policy = Some(PodPolicy { ingress, ..PodPolicy::default() });
    Guard::of(&PodNetwork { policy, ..PodNetwork::default() }).unwrap()
}

/// An address of a private range.
fn at(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(number).unwrap()).into(),
        Family::V6 => Ipv6Addr::from_bits((0xfd << 120) + number).into(),
    }
}

#[test]
fn a_program_has_room_for_hundreds_of_ranges() {
    // So many ranges of a width, so far apart.
    let cases: [(Family, u128, u128, u128); 5] = [
        (Family::V4, 1900, 4, 1),
        (Family::V4, 900, 4, 2),
        (Family::V6, 1900, 4, 1),
        (Family::V6, 900, 4, 2),
        // Each in words of its own.
        (Family::V6, 200, 1 << 40, 1),
    ];
    for (family, count, apart, width) in cases {
        let range = |number| AddressRange {
            first: at(family, apart * number),
            last: at(family, apart * number + width - 1),
        };
        let guard = closed_but_for((0..count).map(range).collect());
        let program = guard.program(family, 80).unwrap();
        for number in 0..count {
            let is_kept = |further| {
                keeps(&program, &Packet::new(at(family, apart * number + further), SYN_ONLY))
            };
            assert!(is_kept(0) && is_kept(width - 1), "{family:?} {number}");
            assert!(!is_kept(width), "after {family:?} {number}");
        }
    }
}

#[test]
fn policies_that_are_too_long_have_no_program() {
    let one = |number: u32| AddressRange::one(Ipv4Addr::from_bits(2 * number).into());
    let program =
        |ranges: u32| closed_but_for((0..ranges).map(one).collect()).program(Family::V4, 80);
    assert!(program(1900).is_some_and(|steps| steps.len() <= MOST_STEPS));
    assert!(program(2100).is_none());
}

#[test]
fn a_program_is_made_once_for_all_sockets_of_a_port() {
    let policy = Some(PodPolicy::closed());
    let guard = Guard::of(&PodNetwork { policy, ..PodNetwork::default() }).unwrap();
    let mut programs = Programs::of(&guard);
    let mut at = |family, port| programs.get(family, port).unwrap().as_ptr();
    let first = at(Family::V4, 80);
    assert_ne!(at(Family::V6, 80), first);
    assert_ne!(at(Family::V4, 81), first);
    assert_eq!(at(Family::V4, 80), first);
}
