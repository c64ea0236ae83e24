//! What is sent to a server, and what its answer means. Pure.

use std::{net::IpAddr, time::Duration};

use simple_dns::{
    CLASS, Label, Name as DnsName, OPCODE, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE,
    TYPE, rdata::RData,
};

use crate::{lookup::ADDRESSES, name::Name};

/// Names in a row that each stand for the next. BIND gives up after 16.
const ALIASES: usize = 16;

/// The longest that an answer is believed. What a server says beyond that is a
/// mistake oftener than a wish.
const LONGEST: Duration = Duration::from_hours(1);

/// As [`LONGEST`], for an answer that there is nothing: Services come into
/// being, and the C library of an ordinary container remembers no such answer.
const LONGEST_NOTHING: Duration = Duration::from_secs(30);

/// Which addresses are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// `A`.
    V4,
    /// `AAAA`.
    V6,
}

impl Kind {
    fn record(self) -> QTYPE {
        QTYPE::TYPE(match self {
            Self::V4 => TYPE::A,
            Self::V6 => TYPE::AAAA,
        })
    }
}

/// Makes a question. None if it cannot be written, which no [`Name`] causes.
pub(crate) fn question(id: u16, name: &Name, kind: Kind) -> Option<Vec<u8>> {
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let name = DnsName::new_unchecked(name.text());
    packet.questions.push(Question::new(name, kind.record(), QCLASS::CLASS(CLASS::IN), false));
    packet.build_bytes_vec().ok()
}

/// What a server has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The name's addresses, and how long that holds. None: the name exists and
    /// has no address of this kind.
    Addresses(Vec<IpAddr>, Duration),
    /// There is no such name, and how long that holds.
    NoName(Duration),
    /// The answer did not fit into a datagram.
    Truncated,
    /// The server failed or refuses: another may know.
    Failed(RCODE),
    /// Its answer makes no sense, such as names that stand for each other.
    Senseless,
}

/// Reads what came for a question. None if it is no answer to it: to be passed
/// over, because anyone may have sent it.
pub(crate) fn verdict(bytes: &[u8], id: u16, name: &Name, kind: Kind) -> Option<Verdict> {
    let packet = Packet::parse(bytes).ok()?;
    let is_answer = packet.id() == id
        && packet.has_flags(PacketFlag::RESPONSE)
        && packet.opcode() == OPCODE::StandardQuery;
    let [asked] = &packet.questions[..] else { return None };
    let is_asked = asked.qtype == kind.record()
        && asked.qclass == QCLASS::CLASS(CLASS::IN)
        && is_same(&asked.qname, &DnsName::new_unchecked(name.text()));
    if !is_answer || !is_asked {
        return None;
    }
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return Some(Verdict::Truncated);
    }
    Some(match packet.rcode() {
        RCODE::NoError => addresses(&packet, name, kind),
        RCODE::NameError => Verdict::NoName(nothing(&packet)),
        other => Verdict::Failed(other),
    })
}

/// Whether two names are the same but for the case of their letters.
fn is_same(one: &DnsName<'_>, other: &DnsName<'_>) -> bool {
    let (one, other) = (one.get_labels(), other.get_labels());
    let same = |(one, other): (&Label<'_>, &Label<'_>)| {
        AsRef::<[u8]>::as_ref(one).eq_ignore_ascii_case(other.as_ref())
    };
    one.len() == other.len() && one.iter().zip(other).all(same)
}

/// Follows the names that stand for others, and collects the last one's
/// addresses. Records of other names are passed over.
fn addresses(packet: &Packet<'_>, name: &Name, kind: Kind) -> Verdict {
    let asked = DnsName::new_unchecked(name.text());
    let mut name = &asked;
    let mut holds = LONGEST;
    for _ in 0..ALIASES {
        let own = packet
            .answers
            .iter()
            .filter(|record| record.class == CLASS::IN && is_same(&record.name, name));
        let mut found = Vec::new();
        let mut alias = None;
        for record in own {
            let address = match (&record.rdata, kind) {
                (RData::A(data), Kind::V4) => IpAddr::V4(data.address.into()),
                (RData::AAAA(data), Kind::V6) => IpAddr::V6(data.address.into()),
                (RData::CNAME(other), _) => {
                    alias = alias.or(Some((&other.0, life(record.ttl))));
                    continue;
                }
                _ => continue,
            };
            holds = holds.min(life(record.ttl));
            if found.len() < ADDRESSES && !found.contains(&address) {
                found.push(address);
            }
        }
        if !found.is_empty() {
            return Verdict::Addresses(found, holds);
        }
        let Some((other, life)) = alias else {
            return Verdict::Addresses(found, holds.min(nothing(packet)));
        };
        holds = holds.min(life);
        name = other;
    }
    Verdict::Senseless
}

/// A number with its highest bit set stands for 0 (RFC 2181, 8).
fn life(seconds: u32) -> Duration {
    if seconds > i32::MAX.cast_unsigned() {
        Duration::ZERO
    } else {
        Duration::from_secs(seconds.into())
    }
}

/// How long it holds that there is nothing (RFC 2308, 5).
fn nothing(packet: &Packet<'_>) -> Duration {
    let soa = packet.name_servers.iter().find_map(|record| match &record.rdata {
        RData::SOA(soa) => Some(life(record.ttl).min(life(soa.minimum))),
        _ => None,
    });
    soa.unwrap_or_default().min(LONGEST_NOTHING)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use simple_dns::{
        ResourceRecord,
        rdata::{A, CNAME, SOA},
    };

    use super::*;

    const NAME: &str = "a.example";

    fn record<'a>((owner, ttl, data): &(&'a str, u32, RData<'a>)) -> ResourceRecord<'a> {
        ResourceRecord::new(DnsName::new_unchecked(owner), CLASS::IN, *ttl, data.clone())
    }

    fn asked(name: &str) -> Question<'_> {
        let name = DnsName::new_unchecked(name);
        Question::new(name, Kind::V4.record(), QCLASS::CLASS(CLASS::IN), false)
    }

    fn answer<'a>(records: &[(&'a str, u32, RData<'a>)]) -> Packet<'a> {
        let mut packet = Packet::new_reply(7);
        packet.questions.push(asked(NAME));
        packet.answers.extend(records.iter().map(record));
        packet
    }

    fn read(packet: &Packet<'_>) -> Option<Verdict> {
        let bytes = packet.build_bytes_vec_compressed().unwrap();
        verdict(&bytes, 7, &Name::parse(NAME).unwrap(), Kind::V4)
    }

    fn address<'a>(last: u8) -> RData<'a> {
        RData::A(A { address: u32::from_be_bytes([192, 0, 2, last]) })
    }

    fn alias(to: &str) -> RData<'_> {
        RData::CNAME(CNAME(DnsName::new_unchecked(to)))
    }

    #[expect(clippy::unnecessary_wraps, reason = "compared with what may be none")]
    fn found(lasts: &[u8], seconds: u64) -> Option<Verdict> {
        let all = lasts.iter().map(|last| IpAddr::from([192, 0, 2, *last])).collect();
        Some(Verdict::Addresses(all, Duration::from_secs(seconds)))
    }

    #[test]
    fn aliases_are_followed_and_others_records_passed_over() {
        for (records, wanted) in [
            (vec![(NAME, 30, address(1)), ("A.Example", 20, address(2))], found(&[1, 2], 20)),
            (vec![("b.example", 30, address(1)), (NAME, 9, alias("b.example"))], found(&[1], 9)),
            (vec![("c.example", 30, address(1))], found(&[], 0)),
            (vec![(NAME, 30, alias("elsewhere"))], found(&[], 0)),
            (vec![(NAME, u32::MAX, address(1))], found(&[1], 0)),
            (vec![(NAME, 1 << 30, address(1))], found(&[1], 3600)),
            (
                vec![(NAME, 30, alias("b.example")), ("b.example", 30, alias(NAME))],
                Some(Verdict::Senseless),
            ),
        ] {
            assert_eq!(read(&answer(&records)), wanted, "{records:?}");
        }
    }

    #[test]
    fn nothing_holds_as_long_as_the_zone_says_but_not_long() {
        let with = |ttl: u32, minimum: u32| {
            let mut packet = answer(&[]);
            *packet.rcode_mut() = RCODE::NameError;
            let [mname, rname] = ["ns", "root"].map(DnsName::new_unchecked);
            let (serial, refresh, retry, expire) = (1, 1, 1, 1);
            let soa = SOA { mname, rname, serial, refresh, retry, expire, minimum };
            packet.name_servers.push(record(&("example", ttl, RData::SOA(soa))));
            read(&packet)
        };
        let holds = |seconds| Some(Verdict::NoName(Duration::from_secs(seconds)));
        assert_eq!(with(5, 20), holds(5));
        assert_eq!(with(20, 5), holds(5));
        assert_eq!(with(900, 900), holds(30));
    }

    #[test]
    fn what_answers_another_question_is_passed_over() {
        let good = || answer(&[(NAME, 30, address(1))]);
        assert!(read(&good()).is_some());
        let with = |change: fn(&mut Packet<'_>)| {
            let mut packet = good();
            change(&mut packet);
            read(&packet)
        };
        assert_eq!(with(|packet| packet.set_id(8)), None);
        assert_eq!(with(|packet| packet.remove_flags(PacketFlag::RESPONSE)), None);
        assert_eq!(with(|packet| *packet.opcode_mut() = OPCODE::Notify), None);
        assert_eq!(with(|packet| packet.questions.clear()), None);
        assert_eq!(with(|packet| packet.questions.push(asked(NAME))), None);
        assert_eq!(with(|packet| packet.questions[0] = asked("b.example")), None);
        assert_eq!(with(|packet| packet.questions[0].qtype = Kind::V6.record()), None);
        assert_eq!(with(|packet| packet.questions[0].qclass = QCLASS::CLASS(CLASS::CH)), None);
        assert_eq!(verdict(b"short", 7, &Name::parse(NAME).unwrap(), Kind::V4), None);
    }

    #[test]
    fn a_failure_is_no_answer_and_a_cut_one_is_asked_for_again() {
        for code in [RCODE::ServerFailure, RCODE::Refused, RCODE::FormatError] {
            let mut packet = answer(&[]);
            *packet.rcode_mut() = code;
            assert_eq!(read(&packet), Some(Verdict::Failed(code)));
        }
        let mut packet = answer(&[]);
        packet.set_flags(PacketFlag::TRUNCATION);
        assert_eq!(read(&packet), Some(Verdict::Truncated));
    }

    #[test]
    fn a_question_asks_what_it_is_asked_to() {
        let bytes = question(9, &Name::parse(NAME).unwrap(), Kind::V6).unwrap();
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(packet.id(), 9);
        assert!(packet.has_flags(PacketFlag::RECURSION_DESIRED));
        assert!(!packet.has_flags(PacketFlag::RESPONSE));
        let [question] = &packet.questions[..] else { panic!("{packet:?}") };
        assert!(is_same(&question.qname, &DnsName::new_unchecked(NAME)));
        assert_eq!(question.qtype, QTYPE::TYPE(TYPE::AAAA));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..600),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        ) {
            let name = Name::parse(NAME).unwrap();
            let _ = verdict(&bytes, 7, &name, Kind::V4);
            let chain = [(NAME, 30, alias("b.example")), ("b.example", 3, address(1))];
            let mut near = answer(&chain).build_bytes_vec_compressed().unwrap();
            for (at, value) in flips {
                let at = at.index(near.len());
                near[at] = value;
            }
            if let Some(Verdict::Addresses(_, holds)) = verdict(&near, 7, &name, Kind::V4) {
                prop_assert!(holds <= LONGEST);
            }
        }
    }

    #[test]
    fn no_more_addresses_are_taken_than_a_look_up_gives() {
        let many = |first: u16| {
            let at = move |number: u16| {
                let [high, low] = (first + number).to_be_bytes();
                (NAME, 60, RData::A(A { address: u32::from_be_bytes([10, 9, high, low]) }))
            };
            (0..1000).map(at).collect::<Vec<_>>()
        };
        // Twice the same, so that it is those that differ which are counted.
        let records = [many(0), many(0)].concat();
        let Some(Verdict::Addresses(addresses, _)) = read(&answer(&records)) else { panic!() };
        let expected: Vec<IpAddr> = (0..ADDRESSES)
            .map(|number| {
                let [.., high, low] = number.to_be_bytes();
                IpAddr::from([10, 9, high, low])
            })
            .collect();
        assert_eq!(addresses, expected);
    }
}
