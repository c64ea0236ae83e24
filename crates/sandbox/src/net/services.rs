//! Services, where the agent has sandboxes lead pods to them.
//!
//! ```text
//! Directory (one for the process) ── the file of an address ──▶ lead: pure ──▶ Lead
//!                                                                 ▲
//!                                         Affinity (one for each pod)
//! ```
//!
//! The files are opened when a guest connects or sends, so that a sandbox whose
//! guests call no Service keeps nothing of any. What cannot be read leads
//! nowhere, and the agent hears of it: whoever was told of an address that may be
//! a Service's must not be let through to something else that has it.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use krustlet_model::services::{ServiceKey, Transport};
use krustlet_protocol::{
    ServiceAddress, ServiceName, ServicePort,
    services::{COMPLETE, MAX_SERVICE, address_file, name_file},
};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use serde::de::DeserializeOwned;

use super::place;
use crate::news::{News, Teller};

/// Between two complaints to the agent.
const QUIET: Duration = Duration::from_mins(1);

/// Ports of Services that a pod is led to the same endpoint of, at most; the one
/// used longest ago is forgotten for another.
const AFFINITIES: usize = 256;

/// The files, as the agent handed them over. Clones are the same ones.
#[derive(Clone, Debug)]
pub(crate) struct Directory(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    files: OwnedFd,
    /// Whether all Services have been written once; never again not.
    is_complete: AtomicBool,
    teller: Teller,
    complained: Mutex<Option<Instant>>,
}

/// Why it is not known where something leads.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("the Services of the cluster are not known yet")]
    Incomplete,
    #[error("cannot read {file} of the Services: {source}")]
    File { file: String, source: io::Error },
    #[error("cannot understand {file} of the Services: {source}")]
    Damaged { file: String, source: serde_json::Error },
}

impl Directory {
    pub(crate) fn new(files: OwnedFd, teller: Teller) -> Self {
        let complained = Mutex::default();
        Self(Arc::new(Shared { files, is_complete: AtomicBool::new(false), teller, complained }))
    }

    /// Whether a descriptor is of the same directory, so that one is enough for
    /// all pods of the process.
    pub(crate) fn is(&self, files: &OwnedFd) -> bool {
        let id = |files| rustix::fs::fstat(files).ok().map(|stat| (stat.st_dev, stat.st_ino));
        let own = id(&self.0.files);
        own.is_some() && own == id(files)
    }

    /// What an address is to Services; None if it is no Service's.
    fn address(&self, ip: IpAddr) -> Result<Option<ServiceAddress>, Unreadable> {
        self.heard(self.read(&address_file(ip)))
    }

    /// What the name of a Service stands for; None if there is no such Service.
    pub(super) fn name(&self, key: &ServiceKey) -> Result<Option<ServiceName>, Unreadable> {
        match name_file(key) {
            Some(file) => self.heard(self.read(&file)),
            None => Ok(None),
        }
    }

    fn read<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, Unreadable> {
        let failed = |source| Unreadable::File { file: path.to_owned(), source };
        let Some(file) = self.open(path).map_err(|error| failed(error.into()))? else {
            return self.is_complete().map(|()| None);
        };
        let mut bytes = Vec::new();
        let most = MAX_SERVICE as u64 + 1;
        File::from(file).take(most).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() > MAX_SERVICE {
            return Err(failed(io::ErrorKind::FileTooLarge.into()));
        }
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| Unreadable::Damaged { file: path.to_owned(), source })
    }

    fn open(&self, path: &str) -> Result<Option<OwnedFd>, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        match rustix::fs::openat(&self.0.files, path, flags, Mode::empty()) {
            Ok(file) => Ok(Some(file)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// That what has no file is no Service's.
    fn is_complete(&self) -> Result<(), Unreadable> {
        if self.0.is_complete.load(Relaxed) {
            return Ok(());
        }
        match self.open(COMPLETE) {
            Ok(Some(_)) => {
                self.0.is_complete.store(true, Relaxed);
                Ok(())
            }
            Ok(None) => Err(Unreadable::Incomplete),
            Err(error) => Err(Unreadable::File { file: COMPLETE.into(), source: error.into() }),
        }
    }

    /// Has the agent hear of a failure, now and then.
    fn heard<T>(&self, read: Result<T, Unreadable>) -> Result<T, Unreadable> {
        read.inspect_err(|error| {
            let now = Instant::now();
            let mut last = self.0.complained.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_none_or(|last| now >= last + QUIET) {
                *last = Some(now);
                let what = format!("guests cannot connect: {error}");
                self.0.teller.tell(News::Complaint { what });
            }
        })
    }
}

/// Where a destination leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lead {
    /// It is no Service's.
    Itself,
    /// To this endpoint.
    Endpoint(SocketAddr),
    /// To nobody, who is told.
    Refused,
    /// To nobody, who hears nothing.
    Silence,
}

/// Endpoints that a pod was led to, of Services with affinity.
#[derive(Debug, Default)]
pub(super) struct Affinity(Mutex<BTreeMap<(String, bool), Kept>>);

#[derive(Clone, Copy, Debug)]
struct Kept {
    endpoint: SocketAddr,
    used: Instant,
}

/// A destination and who asks for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) transport: Transport,
    pub(super) to: SocketAddr,
    /// The pod's addresses.
    pub(super) from: &'a [IpAddr],
    /// The endpoint it was led to before, if it is the same flow of datagrams.
    pub(super) before: Option<SocketAddr>,
    /// Endpoints that refused it just now: it is led to another, or refused.
    pub(super) but: &'a [SocketAddr],
}

impl Affinity {
    /// Where a destination leads to now.
    ///
    /// # Errors
    ///
    /// [`Unreadable`], of which the agent has heard.
    pub(super) fn lead(&self, directory: &Directory, asked: Asked<'_>) -> Result<Lead, Unreadable> {
        let Some(address) = directory.address(asked.to.ip())? else { return Ok(Lead::Itself) };
        // Without luck all go to the first.
        let random = getrandom::u64().unwrap_or_default();
        Ok(self.choose(&address, asked, Instant::now(), random))
    }

    fn choose(
        &self,
        address: &ServiceAddress,
        asked: Asked<'_>,
        now: Instant,
        random: u64,
    ) -> Lead {
        let found = address
            .ports
            .iter()
            .find(|port| (port.transport, port.port) == (asked.transport, asked.to.port()));
        let Some(port) = found else {
            return if address.is_only { Lead::Refused } else { Lead::Itself };
        };
        if !may_come(port, asked) {
            return Lead::Silence;
        }
        // What is of another kind than the address cannot be reached from there.
        let is_v6 = asked.to.is_ipv6();
        let of_kind = |endpoint: &&SocketAddr| endpoint.is_ipv6() == is_v6;
        let endpoints: Vec<&SocketAddr> = port.endpoints.iter().filter(of_kind).collect();
        if endpoints.is_empty() {
            return if port.is_silent { Lead::Silence } else { Lead::Refused };
        }
        let others = endpoints.into_iter().filter(|endpoint| !asked.but.contains(endpoint));
        let endpoints: Vec<&SocketAddr> = others.collect();
        if endpoints.is_empty() {
            return Lead::Refused;
        }
        let at = random % endpoints.len() as u64;
        let any = *endpoints[usize::try_from(at).unwrap_or_default()];
        let has = |one: &SocketAddr| endpoints.contains(&one);
        if let Some(before) = asked.before.filter(has) {
            return Lead::Endpoint(before);
        }
        if port.affinity_s == 0 {
            return Lead::Endpoint(any);
        }
        let lasts = Duration::from_secs(port.affinity_s);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (port.of.clone(), is_v6);
        let known = kept.get(&key).filter(|known| {
            now.saturating_duration_since(known.used) < lasts && has(&known.endpoint)
        });
        let endpoint = known.map_or(any, |known| known.endpoint);
        if kept.len() >= AFFINITIES && !kept.contains_key(&key) {
            let oldest = kept.iter().min_by_key(|(_, one)| one.used).map(|(key, _)| key.clone());
            oldest.map(|oldest| kept.remove(&oldest));
        }
        kept.insert(key, Kept { endpoint, used: now });
        Lead::Endpoint(endpoint)
    }
}

/// Whether the Service lets this pod come.
fn may_come(port: &ServicePort, asked: Asked<'_>) -> bool {
    let family = place::Family::of(asked.to.ip());
    let from = asked.from.iter().find(|ip| place::Family::of(**ip) == family);
    port.sources.is_empty()
        || from.is_some_and(|ip| {
            port.sources.iter().any(|range| place::contains(range, SocketAddr::new(*ip, 0)))
        })
}

#[cfg(test)]
pub(super) mod tests {
    use std::{fs, path::Path};

    use krustlet_protocol::Destinations;
    use proptest::prelude::*;

    use super::*;
    use crate::news::Wake;

    /// A directory as the agent would hand it over, and what the agent hears.
    pub(in crate::net) fn directory(home: &Path) -> (Directory, std::sync::mpsc::Receiver<News>) {
        for part in ["addresses", "names"] {
            fs::create_dir_all(home.join(part)).unwrap();
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let files = rustix::fs::open(home, flags, Mode::empty()).unwrap();
        let (teller, news) = Teller::new(Arc::new(Wake::new().unwrap()));
        (Directory::new(files, teller), news)
    }

    /// Writes the file of an address with one port.
    pub(in crate::net) fn write(home: &Path, address: &str, port: ServicePort) {
        let address_of = ServiceAddress { is_only: true, ports: vec![port] };
        let file = home.join(address_file(address.parse().unwrap()));
        fs::write(file, serde_json::to_vec(&address_of).unwrap()).unwrap();
    }

    pub(in crate::net) fn port(transport: Transport, endpoints: &[SocketAddr]) -> ServicePort {
        ServicePort {
            transport,
            port: 80,
            of: "n/s:".into(),
            endpoints: endpoints.to_vec(),
            is_silent: false,
            affinity_s: 0,
            sources: vec![],
        }
    }

    fn asked(to: &str) -> Asked<'static> {
        let to = to.parse().unwrap();
        Asked { transport: Transport::Tcp, to, from: &[], before: None, but: &[] }
    }

    fn endpoints(count: u8) -> Vec<SocketAddr> {
        (1..=count).map(|n| SocketAddr::from(([10, 1, 0, n], 8080))).collect()
    }

    #[test]
    fn what_cannot_be_read_leads_nowhere_and_is_complained_of_once() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path();
        let (directory, news) = directory(home);
        let affinity = Affinity::default();
        let lead = |to: &str| affinity.lead(&directory, asked(to));
        let before = lead("10.96.0.7:80").unwrap_err();
        assert!(matches!(before, Unreadable::Incomplete), "{before}");
        fs::write(home.join(COMPLETE), "").unwrap();
        assert_eq!(lead("10.96.0.7:80").unwrap(), Lead::Itself);
        write(home, "10.96.0.7", port(Transport::Tcp, &endpoints(1)));
        assert_eq!(lead("10.96.0.7:80").unwrap(), Lead::Endpoint(endpoints(1)[0]));
        assert_eq!(lead("[::ffff:10.96.0.7]:80").unwrap(), Lead::Refused, "of another kind");

        let file = home.join("addresses/10.96.0.7");
        for damage in ["", "{", "{}", "[]", "{\"ports\": 1}"] {
            fs::write(&file, damage).unwrap();
            let error = lead("10.96.0.7:80").unwrap_err();
            assert!(matches!(error, Unreadable::Damaged { .. }), "{damage}: {error}");
        }
        fs::write(&file, " ".repeat(MAX_SERVICE + 1)).unwrap();
        assert!(matches!(lead("10.96.0.7:80").unwrap_err(), Unreadable::File { .. }));
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink(home.join(COMPLETE), &file).unwrap();
        assert!(matches!(lead("10.96.0.7:80").unwrap_err(), Unreadable::File { .. }));
        assert!(matches!(news.try_recv().unwrap(), News::Complaint { .. }));
        assert!(news.try_recv().is_err(), "once is enough");
    }

    #[test]
    fn a_directory_that_is_handed_again_is_known() {
        let home = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [(one, _n), (other, _m)] = home.each_ref().map(|home| directory(home.path()));
        assert!(one.is(&one.0.files.try_clone().unwrap()));
        assert!(!one.is(&other.0.files));
    }

    #[test]
    fn other_ports_are_refused_where_an_address_is_a_services_alone() {
        let affinity = Affinity::default();
        let ports = vec![port(Transport::Tcp, &endpoints(1))];
        for (is_only, expected) in [(true, Lead::Refused), (false, Lead::Itself)] {
            let address = ServiceAddress { is_only, ports: ports.clone() };
            let lead = |asked| affinity.choose(&address, asked, Instant::now(), 0);
            assert_eq!(lead(asked("10.96.0.7:81")), expected);
            let datagrams = Asked { transport: Transport::Udp, ..asked("10.96.0.7:80") };
            assert_eq!(lead(datagrams), expected);
            assert_eq!(lead(asked("10.96.0.7:80")), Lead::Endpoint(endpoints(1)[0]));
        }
    }

    #[test]
    fn only_the_sources_that_a_balancer_takes_come_to_its_service() {
        let address = "10.0.0.0".parse().unwrap();
        let mut port = port(Transport::Tcp, &endpoints(1));
        port.sources = vec![Destinations { address, prefix: 8, port: None }];
        let address = ServiceAddress { is_only: false, ports: vec![port] };
        let lead = |from: &[&str]| {
            let from: Vec<IpAddr> = from.iter().map(|ip| ip.parse().unwrap()).collect();
            let asked = Asked { from: &from, ..asked("192.0.2.1:80") };
            Affinity::default().choose(&address, asked, Instant::now(), 0)
        };
        assert_eq!(lead(&["fd00::1", "10.1.0.7"]), Lead::Endpoint(endpoints(1)[0]));
        assert_eq!(lead(&["fd00::1", "192.168.0.1"]), Lead::Silence);
        assert_eq!(lead(&["fd00::1"]), Lead::Silence);
    }

    #[test]
    fn who_was_refused_is_led_to_another_and_stays_there() {
        let ends = endpoints(2);
        for (affinity_s, is_silent) in [(0, false), (0, true), (60, false)] {
            let port = ServicePort { affinity_s, is_silent, ..port(Transport::Tcp, &ends) };
            let address = ServiceAddress { is_only: true, ports: vec![port] };
            let affinity = Affinity::default();
            let lead = |but: &[SocketAddr], random| {
                let asked = Asked { but, ..asked("10.96.0.7:80") };
                affinity.choose(&address, asked, Instant::now(), random)
            };
            assert_eq!(lead(&[], 0), Lead::Endpoint(ends[0]));
            for random in 0..3 {
                assert_eq!(lead(&ends[..1], random), Lead::Endpoint(ends[1]));
            }
            let next = lead(&[], 0);
            assert_eq!(next == Lead::Endpoint(ends[1]), affinity_s > 0, "{next:?}");
            assert_eq!(lead(&ends, 0), Lead::Refused, "by all there are");
        }
    }

    proptest! {
        #[test]
        fn every_endpoint_has_its_turn_and_none_else(
            count in 0_u8..9,
            is_silent in any::<bool>(),
            random in any::<u64>(),
        ) {
            let mut port = port(Transport::Tcp, &endpoints(count));
            port.is_silent = is_silent;
            let address = ServiceAddress { is_only: true, ports: vec![port] };
            let lead = |random| {
                let affinity = Affinity::default();
                affinity.choose(&address, asked("10.96.0.7:80"), Instant::now(), random)
            };
            if count == 0 {
                let expected = if is_silent { Lead::Silence } else { Lead::Refused };
                prop_assert_eq!(lead(random), expected);
                return Ok(());
            }
            let mut found: Vec<_> = (0..u64::from(count))
                .filter_map(|more| match lead(random.wrapping_add(more)) {
                    Lead::Endpoint(endpoint) => Some(endpoint),
                    _ => None,
                })
                .collect();
            found.sort();
            // Where the number begins again, one may be drawn twice.
            found.dedup();
            prop_assert!(found.len() >= usize::from(count).saturating_sub(1).max(1));
            prop_assert!(found.iter().all(|one| endpoints(count).contains(one)));
        }

        #[test]
        fn affinity_holds_while_it_is_used_and_its_endpoint_is_there(
            steps in prop::collection::vec((0_u64..200, 1_u8..6, any::<u64>()), 1..40)
        ) {
            let affinity = Affinity::default();
            let mut now = Instant::now();
            let mut last: Option<SocketAddr> = None;
            for (passes, count, random) in steps {
                now += Duration::from_secs(passes);
                let mut port = port(Transport::Tcp, &endpoints(count));
                port.affinity_s = 100;
                let address = ServiceAddress { is_only: true, ports: vec![port] };
                let lead = affinity.choose(&address, asked("10.96.0.7:80"), now, random);
                let Lead::Endpoint(endpoint) = lead else { panic!("{lead:?}") };
                if let Some(last) = last && passes < 100 && endpoints(count).contains(&last) {
                    prop_assert_eq!(endpoint, last);
                } else {
                    prop_assert_eq!(endpoint, endpoints(count)[usize::try_from(random % u64::from(count)).unwrap()]);
                }
                last = Some(endpoint);
            }
        }

        #[test]
        fn what_is_kept_for_affinity_is_bounded(services in prop::collection::vec(0_u16..600, 0..900)) {
            let affinity = Affinity::default();
            let now = Instant::now();
            for (after, service) in services.into_iter().enumerate() {
                let mut port = port(Transport::Tcp, &endpoints(2));
                port.affinity_s = 100;
                port.of = format!("n/s{service}:");
                let address = ServiceAddress { is_only: true, ports: vec![port] };
                let now = now + Duration::from_millis(after as u64);
                affinity.choose(&address, asked("10.96.0.7:80"), now, after as u64);
                prop_assert!(affinity.0.lock().unwrap().len() <= AFFINITIES);
            }
        }
    }
}
