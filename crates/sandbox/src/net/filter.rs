//! Keeps those whom policies do not let in from the listeners of a pod.
//!
//! The system takes a connection before anybody looks at it. A client that is then
//! refused has seen its connection open, and while a guest accepts slowly such
//! clients take the places of others. So each listener has a packet filter
//! (socket(7), `SO_ATTACH_FILTER`), which drops the first packet of those who may
//! not come in; they hear nothing, as behind a packet filter of a node.
//!
//! A filter lets through all that policies do, and may let through more: it has
//! few instructions. What it lets through is looked at once more when it is
//! accepted, and where the system refuses a filter, as on a node that had no
//! policies when the sandbox was made, that is all there is. What was accepted keeps
//! the filter of its listener: it lets its packets through, as its first one.
//!
//! Ours, for what assembles such programs (`seccompiler`, `bpf-script`) knows system
//! calls or whole languages, and these are two comparisons for each range.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use krustlet_model::policy::{AddressRange, merge};

use super::place::Family;

/// Ranges of one filter. Of more, neighbours are taken together with what lies
/// between them.
const MOST_RANGES: usize = 32;

/// What to do, how many steps to leave out, and with what value
/// (`Documentation/networking/filter.rst` of Linux).
type Step = libc::sock_filter;

/// Listeners of one pod that have filters, or will when there are policies.
#[derive(Clone, Debug, Default)]
pub(super) struct Filters(Arc<Mutex<BTreeMap<u64, Filtered>>>);

/// One of them.
#[derive(Debug)]
struct Filtered {
    /// The same socket by another descriptor.
    socket: OwnedFd,
    family: Family,
    /// The container's port.
    port: u16,
    /// What is attached.
    ranges: Option<Vec<AddressRange>>,
}

/// Keeps a listener's filter as the policies are, until it is dropped.
#[derive(Debug)]
pub(super) struct Filter {
    number: u64,
    home: Filters,
}

impl Drop for Filter {
    fn drop(&mut self) {
        let Some(filtered) = self.home.lock().remove(&self.number) else { return };
        // One that was handed over will be listened on again.
        if filtered.ranges.is_some() {
            let _ = detach(&filtered.socket);
        }
    }
}

impl Filters {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Filtered>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Filters what comes to a listener for a container's port. Who may come in to it
    /// is asked for; none is anybody.
    ///
    /// # Errors
    ///
    /// When there is no further descriptor.
    pub(super) fn add(
        &self,
        socket: BorrowedFd<'_>,
        family: Family,
        port: u16,
        sources: impl FnOnce(u16) -> Option<Vec<AddressRange>>,
    ) -> io::Result<Filter> {
        let socket = socket.try_clone_to_owned()?;
        let mut all = self.lock();
        let mut filtered = Filtered { socket, family, port, ranges: None };
        // While nobody can renew the others: what is set later is seen by this one.
        filtered.renew(sources(port));
        let number = all.last_key_value().map_or(0, |(last, _)| last + 1);
        all.insert(number, filtered);
        Ok(Filter { number, home: self.clone() })
    }

    /// The policies have changed. They are asked once for each port.
    pub(super) fn renew(&self, sources: impl Fn(u16) -> Option<Vec<AddressRange>>) {
        let mut asked = BTreeMap::new();
        for filtered in self.lock().values_mut() {
            let port = filtered.port;
            filtered.renew(asked.entry(port).or_insert_with(|| sources(port)).clone());
        }
    }
}

impl Filtered {
    fn renew(&mut self, sources: Option<Vec<AddressRange>>) {
        let ranges = sources.map(|ranges| few(of_family(ranges, self.family)));
        if self.ranges == ranges {
            return;
        }
        // First: a socket has no room for the one before it and another (Linux,
        // `net.core.optmem_max`). Who comes between them is seen when he is accepted.
        if self.ranges.take().is_some() {
            let _ = detach(&self.socket);
        }
        // Where the system takes none there is none.
        self.ranges =
            ranges.filter(|ranges| attach(&self.socket, &program(self.family, ranges)).is_ok());
    }
}

fn of_family(ranges: Vec<AddressRange>, family: Family) -> Vec<AddressRange> {
    ranges.into_iter().filter(|range| Family::of(range.first) == family).collect()
}

/// Not more than a filter has room for, and at least the same addresses.
fn few(ranges: Vec<AddressRange>) -> Vec<AddressRange> {
    let together = ranges.len().div_ceil(MOST_RANGES).max(1);
    let neighbours = ranges.chunks(together).filter_map(|some| {
        Some(AddressRange { first: some.first()?.first, last: some.last()?.last })
    });
    merge(neighbours.collect())
}

/// Keeps the whole packet.
const KEEP: u32 = u32::MAX;

/// Drops it.
const DROP: u32 = 0;

const fn step(code: u32, [yes, no]: [u8; 2], value: u32) -> Step {
    // The codes have 16 bits.
    #[expect(clippy::cast_possible_truncation, reason = "see above")]
    let code = code as u16;
    Step { code, jt: yes, jf: no, k: value }
}

const fn answer(with: u32) -> Step {
    step(libc::BPF_RET | libc::BPF_K, [0, 0], with)
}

/// Leaves out so many steps if it holds, or if not.
const fn compare(how: u32, value: u32, to: [u8; 2]) -> Step {
    step(libc::BPF_JMP | how | libc::BPF_K, to, value)
}

/// Where the source's address begins in a packet's IP header (RFC 791, RFC 8200).
fn source_of(family: Family) -> u32 {
    let within = match family {
        Family::V4 => 12,
        Family::V6 => 8,
    };
    libc::SKF_NET_OFF.cast_unsigned() + within
}

/// An address, four bytes at a time.
fn words(address: IpAddr) -> Vec<u32> {
    let bits = match address {
        IpAddr::V4(address) => return vec![address.to_bits()],
        IpAddr::V6(address) => address.to_bits(),
    };
    bits.to_be_bytes().as_chunks().0.iter().map(|word| u32::from_be_bytes(*word)).collect()
}

/// Keeps packets whose source is in one of the ranges, which are in order and of
/// the family.
fn program(family: Family, ranges: &[AddressRange]) -> Vec<Step> {
    let mut steps = Vec::new();
    for index in (0..).take(words(family.wildcard()).len()) {
        let at = source_of(family) + 4 * index;
        steps.push(step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, [0, 0], at));
        steps.push(step(libc::BPF_ST, [0, 0], index));
    }
    for range in ranges {
        // Below this range, and above the one before it.
        steps.extend(unless(libc::BPF_JGE, &words(range.first), DROP));
        steps.extend(unless(libc::BPF_JGT, &words(range.last), KEEP));
    }
    steps.push(answer(DROP));
    steps
}

/// Answers, unless the source is above what it is compared with, or is the same and
/// `how` has equality in it.
fn unless(how: u32, words: &[u32], with: u32) -> Vec<Step> {
    let mut steps = Vec::new();
    let Some((last, high)) = words.split_last() else { return steps };
    let load = |index| step(libc::BPF_LD | libc::BPF_MEM, [0, 0], index);
    // Four steps for each of these, and three for the last.
    let length = 4 * high.len() + 3;
    let mut index = 0;
    for word in high {
        steps.push(load(index));
        let beyond = u8::try_from(length - steps.len() - 1).unwrap_or(u8::MAX);
        steps.push(compare(libc::BPF_JGT, *word, [beyond, 0]));
        steps.push(compare(libc::BPF_JEQ, *word, [1, 0]));
        steps.push(answer(with));
        index += 1;
    }
    steps.extend([load(index), compare(how, *last, [1, 0]), answer(with)]);
    steps
}

fn attach(socket: &OwnedFd, steps: &[Step]) -> io::Result<()> {
    let length = u16::try_from(steps.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len: length, filter: steps.as_ptr().cast_mut() };
    set(socket, libc::SO_ATTACH_FILTER, &program)
}

fn detach(socket: &OwnedFd) -> io::Result<()> {
    set(socket, libc::SO_DETACH_FILTER, &0_i32)
}

/// `rustix` has no such options.
fn set<T>(socket: &OwnedFd, option: i32, value: &T) -> io::Result<()> {
    let size = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: the value is of this size, and what it points to is only read.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, value, size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{Ipv4Addr, Ipv6Addr, SocketAddr},
        os::fd::AsFd as _,
        time::Duration,
    };

    use proptest::prelude::*;
    use tokio::{
        net::{TcpListener, TcpSocket, TcpStream},
        time::timeout,
    };

    use super::*;

    /// Whether a program keeps a packet from there: the few instructions that it
    /// has, as the kernel carries them out.
    fn keeps(steps: &[Step], source: IpAddr) -> bool {
        let (mut value, mut memory, mut next) = (0, [0; 16], 0);
        loop {
            let Step { code, jt, jf, k } = steps[next];
            next += 1;
            let code = u32::from(code);
            let holds = match code {
                code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => {
                    let at = (k - source_of(Family::of(source))) / 4;
                    value = words(source)[at as usize];
                    continue;
                }
                code if code == libc::BPF_LD | libc::BPF_MEM => {
                    value = memory[k as usize];
                    continue;
                }
                libc::BPF_ST => {
                    memory[k as usize] = value;
                    continue;
                }
                code if code == libc::BPF_RET | libc::BPF_K => return k == KEEP,
                code if code == libc::BPF_JMP | libc::BPF_JGT => value > k,
                code if code == libc::BPF_JMP | libc::BPF_JGE => value >= k,
                code if code == libc::BPF_JMP | libc::BPF_JEQ => value == k,
                code => panic!("an instruction {code} that no program has"),
            };
            next += usize::from(if holds { jt } else { jf });
        }
    }

    /// Few addresses whose words meet often, high and low.
    fn address(is_v6: bool) -> impl Strategy<Value = IpAddr> {
        prop::collection::vec(prop_oneof![0..4_u32, (u32::MAX - 2)..=u32::MAX], 4).prop_map(
            move |words| {
                let bits = words.iter().fold(0, |bits, word| bits << 32 | u128::from(*word));
                if is_v6 {
                    Ipv6Addr::from_bits(bits).into()
                } else {
                    Ipv4Addr::from_bits(words[0]).into()
                }
            },
        )
    }

    fn ranges(is_v6: bool, most: usize) -> impl Strategy<Value = Vec<AddressRange>> {
        let range = (address(is_v6), address(is_v6))
            .prop_map(|(one, other)| AddressRange { first: one.min(other), last: one.max(other) });
        let one = address(is_v6).prop_map(AddressRange::one);
        prop::collection::vec(prop_oneof![range, one], 0..most).prop_map(merge)
    }

    proptest! {
        #[test]
        fn a_program_keeps_what_its_ranges_have(
            (is_v6, ranges, sources) in any::<bool>().prop_flat_map(|is_v6| {
                (Just(is_v6), ranges(is_v6, 6), prop::collection::vec(address(is_v6), 1..20))
            }),
        ) {
            let family = if is_v6 { Family::V6 } else { Family::V4 };
            let program = program(family, &ranges);
            for source in sources {
                let has = ranges.iter().any(|range| range.contains(source));
                prop_assert_eq!(keeps(&program, source), has, "{}", source);
            }
        }

        #[test]
        fn fewer_ranges_have_the_same_addresses_and_perhaps_more(
            firsts in prop::collection::btree_set(any::<u32>(), 0..200),
        ) {
            let one = |first| AddressRange::one(Ipv4Addr::from_bits(first).into());
            let all: Vec<_> = merge(firsts.into_iter().map(one).collect());
            let fewer = few(all.clone());
            prop_assert!(fewer.len() <= MOST_RANGES);
            prop_assert!(all.len() > MOST_RANGES || fewer == all);
            for range in all {
                let has = |end| fewer.iter().any(|range| range.contains(end));
                prop_assert!(has(range.first) && has(range.last));
            }
        }
    }

    /// Connects from one of this machine's loopback addresses.
    async fn connect_from(last: u8, to: SocketAddr) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, last], 0).into()).unwrap();
        socket.connect(to).await.unwrap()
    }

    #[tokio::test]
    async fn who_is_not_let_in_takes_no_place_and_hears_nothing_until_he_is() {
        const LIMIT: Duration = Duration::from_secs(20);
        let friend = |_| Some(vec![AddressRange::one([127, 0, 0, 2].into())]);
        let filters = Filters::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        for _ in 0..2 {
            let filter = filters.add(listener.as_fd(), Family::V4, 80, friend).unwrap();
            let mut stranger = std::pin::pin!(connect_from(3, address));
            assert!(futures::poll!(&mut stranger).is_pending());
            let _friend = timeout(LIMIT, connect_from(2, address)).await.unwrap();
            let (_, from) = timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
            assert_eq!(from.ip(), IpAddr::from([127, 0, 0, 2]));
            assert!(futures::poll!(&mut stranger).is_pending(), "its packet is dropped");
            filters.renew(|port| {
                assert_eq!(port, 80);
                None
            });
            // It asks again, and is let in now.
            timeout(LIMIT, stranger).await.unwrap();
            timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
            // What is listened on without a filter has none of before.
            filters.renew(friend);
            drop(filter);
            timeout(LIMIT, connect_from(4, address)).await.unwrap();
            timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
        }
    }

    #[test]
    fn the_longest_program_is_taken() {
        let listener = std::net::TcpListener::bind("[::1]:0").unwrap();
        let one =
            |number: usize| AddressRange::one(Ipv6Addr::from_bits((number as u128) << 40).into());
        let ranges: Vec<_> = (0..MOST_RANGES).map(one).collect();
        let socket = OwnedFd::from(listener);
        attach(&socket, &program(Family::V6, &ranges)).unwrap();
        detach(&socket).unwrap();
    }
}
