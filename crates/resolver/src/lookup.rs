//! From a name to its addresses.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use krustlet_protocol::Names;
use simple_dns::RCODE;
use tokio::sync::Semaphore;

use crate::{
    ask::{Answer, Failure, Servers, ask},
    cache::{Cache, Known},
    candidates::candidates,
    cluster::{Question, Told, question},
    message::Kind,
    name::Name,
    network::Network,
    places::Places,
};

/// The most addresses that a look-up gives. A Service has at most two; a
/// headless one with more pods is served by any of these.
pub(crate) const ADDRESSES: usize = 256;

/// Look-ups of one pod that are under way or wait.
const WAITING: usize = 1024;

/// Names that stand for others, one after the other, before they are taken for a
/// circle.
const ALIASES: usize = 8;

/// Kinds of addresses that are of use to who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    /// Whether IPv4 is.
    pub v4: bool,
    /// Whether IPv6 is.
    pub v6: bool,
    /// Whether IPv6 comes first.
    pub v6_first: bool,
}

impl Families {
    /// Those of a pod's addresses, the first one's first.
    #[must_use]
    pub fn of(addresses: &[IpAddr]) -> Self {
        Self {
            v4: addresses.iter().any(IpAddr::is_ipv4),
            v6: addresses.iter().any(IpAddr::is_ipv6),
            v6_first: addresses.first().is_some_and(IpAddr::is_ipv6),
        }
    }

    fn has(self, address: IpAddr) -> bool {
        if address.is_ipv4() { self.v4 } else { self.v6 }
    }
}

/// Why a look-up gave no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum LookupError {
    #[error("this is not a name")]
    Invalid,
    #[error("the name has no address")]
    NotFound,
    #[error("no name server answered")]
    Silence,
    #[error("the name servers failed: {code}")]
    Failed {
        /// What the last one said, as the domain name system calls it:
        /// `SERVFAIL`.
        code: String,
    },
    #[error("the pod has no name server")]
    NoServers,
    #[error("too many names are being looked up")]
    Busy,
    /// Never by a [`Resolver`]: whoever uses one may look only some names up.
    #[error("the pod may not look this name up")]
    Denied,
}

/// Looks names up for one pod. Holds what it has learned.
#[derive(Debug)]
pub struct Resolver {
    network: Arc<dyn Network>,
    cache: Mutex<Cache>,
    places: Places,
    /// Places for those who wait for one of them.
    queue: Semaphore,
}

/// How one candidate ended.
enum Tried {
    Found(Vec<IpAddr>),
    /// The name is there, without an address.
    Bare,
    NoName,
    Failed(Failure),
    /// It would be a server's to know, and there is none.
    NoServers,
}

impl Resolver {
    /// One that has learned nothing, with at most so many look-ups at once.
    #[must_use]
    pub fn new(network: Arc<dyn Network>, most: u32) -> Self {
        Self {
            network,
            cache: Mutex::default(),
            places: Places::new(most),
            queue: Semaphore::new(WAITING),
        }
    }

    /// From now on it has at most so many look-ups at once. Those that are under
    /// way go on.
    pub fn bound(&self, most: u32) {
        self.places.set(most);
    }

    /// The addresses of a name by the rules in `names`, at least one.
    ///
    /// A text that is an address is that, of whatever kind. Waits while as many
    /// look-ups as there may be are under way.
    ///
    /// # Errors
    ///
    /// [`LookupError`].
    pub async fn lookup(
        &self,
        name: &str,
        names: &Names,
        families: Families,
    ) -> Result<Vec<IpAddr>, LookupError> {
        if let Some(address) = literal(name) {
            return Ok(vec![address]);
        }
        let name = Name::parse(name).ok_or(LookupError::Invalid)?;
        if let Some(known) = without_servers(&name, names, families) {
            return Ok(known);
        }
        if names.servers.is_empty() && names.cluster_domain.is_empty() {
            return Err(LookupError::NoServers);
        }
        let _waiting = self.queue.try_acquire().map_err(|_| LookupError::Busy)?;
        let _place = self.places.take().await;
        let mut failed = None;
        for candidate in candidates(&name, &names.searches, names.ndots) {
            match self.candidate(&candidate, names, families).await {
                Tried::Found(mut addresses) => {
                    addresses.truncate(ADDRESSES);
                    // Callers keep it, some of them for long.
                    addresses.shrink_to_fit();
                    return Ok(addresses);
                }
                Tried::Bare | Tried::NoName => {}
                // Some servers fail for names of zones they do not know.
                Tried::Failed(Failure::Failed(code)) => {
                    failed = Some(LookupError::Failed { code: code_name(code) });
                }
                // Others would not be heard of either.
                Tried::Failed(Failure::Silence) => return Err(LookupError::Silence),
                Tried::NoServers => failed = Some(LookupError::NoServers),
            }
        }
        Err(failed.unwrap_or(LookupError::NotFound))
    }

    /// By the cluster's own names or by the servers, as the name wants it.
    async fn candidate(&self, name: &Name, names: &Names, families: Families) -> Tried {
        let mut name = name.clone();
        for _ in 0..ALIASES {
            let Some(question) = question(name.text(), &names.cluster_domain) else {
                if names.servers.is_empty() {
                    return Tried::NoServers;
                }
                return self.of_servers(&name, names, families).await;
            };
            let told = match question {
                Question::Nothing => Ok(None),
                Question::Service { namespace, name }
                | Question::Endpoint { namespace, name, .. } => {
                    self.network.service(namespace, name)
                }
            };
            // It is not known what Services there are.
            let Ok(service) = told else { break };
            match question.answer(service) {
                Told::NoName => return Tried::NoName,
                Told::Addresses(addresses) => return of_use(addresses, families),
                Told::Alias(target) => match Name::parse(&target) {
                    Some(target) => name = target.whole(),
                    None => return Tried::NoName,
                },
            }
        }
        Tried::Failed(Failure::Failed(RCODE::ServerFailure))
    }

    /// Both kinds at the same time.
    async fn of_servers(&self, name: &Name, names: &Names, families: Families) -> Tried {
        let of = async |kind: Kind, wanted: bool| {
            if wanted { self.record(name, kind, names).await } else { Ok(Known::Addresses(vec![])) }
        };
        let (v4, v6) = tokio::join!(of(Kind::V4, families.v4), of(Kind::V6, families.v6));
        let (first, second) = if families.v6_first { (v6, v4) } else { (v4, v6) };
        let mut found = Vec::new();
        for known in [&first, &second] {
            if let Ok(Known::Addresses(addresses)) = known {
                found.extend_from_slice(addresses);
            }
        }
        match (first, second) {
            _ if !found.is_empty() => Tried::Found(found),
            // A name that is missing for one kind is missing.
            (Ok(Known::NoName), _) | (_, Ok(Known::NoName)) => Tried::NoName,
            (Err(failure), _) | (_, Err(failure)) => Tried::Failed(failure),
            (Ok(_), Ok(_)) => Tried::Bare,
        }
    }

    async fn record(&self, name: &Name, kind: Kind, names: &Names) -> Result<Known, Failure> {
        if let Some(known) = self.lock().get(&names.servers, name, kind) {
            return Ok(known);
        }
        let servers = Servers {
            all: &names.servers,
            timeout: Duration::from_millis(names.timeout_ms.max(1)),
            attempts: names.attempts,
        };
        let answer = ask(&*self.network, servers, name, kind).await?;
        let (known, holds) = match answer {
            Answer::Addresses(addresses, holds) => (Known::Addresses(addresses), holds),
            Answer::NoName(holds) => (Known::NoName, holds),
        };
        self.lock().put(&names.servers, (name.clone(), kind), known.clone(), holds);
        Ok(known)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those of a Service's addresses that are of use, the first kind first; of
/// several of one kind each has its turn at the beginning, as with name servers.
fn of_use(addresses: Vec<IpAddr>, families: Families) -> Tried {
    let mut found: Vec<IpAddr> = addresses.into_iter().filter(|ip| families.has(*ip)).collect();
    if found.is_empty() {
        return Tried::Bare;
    }
    // Without luck the order is as it is.
    let random = usize::try_from(getrandom::u32().unwrap_or_default()).unwrap_or_default();
    let first = random % found.len();
    found.rotate_left(first);
    found.sort_by_key(|ip| ip.is_ipv6() != families.v6_first);
    Tried::Found(found)
}

/// The registry's name for a code (RFC 6895, 2.3).
fn code_name(code: RCODE) -> String {
    match code {
        RCODE::FormatError => "FORMERR".to_owned(),
        RCODE::ServerFailure => "SERVFAIL".to_owned(),
        RCODE::NotImplemented => "NOTIMP".to_owned(),
        RCODE::Refused => "REFUSED".to_owned(),
        // A server has no reason to answer a question with any of the rest.
        other => format!("RCODE{}", other as u16),
    }
}

/// An address as text, also in brackets as in a URL.
fn literal(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    match bare {
        Some(bare) => bare.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => text.parse().ok(),
    }
}

/// What the hosts file says, and that `localhost` is the pod itself (RFC 6761,
/// 6.3). None if servers are to be asked.
fn without_servers(name: &Name, names: &Names, families: Families) -> Option<Vec<IpAddr>> {
    let text = name.text();
    let lines = names.hosts.iter().filter(|line| {
        line.names.iter().any(|name| name.trim_end_matches('.').eq_ignore_ascii_case(text))
    });
    // Loopback is of both kinds in every pod.
    let of_use = lines
        .map(|line| line.address)
        .filter(|address| families.has(*address) || address.is_loopback());
    let mut found: Vec<IpAddr> = Vec::new();
    for address in of_use {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    if !found.is_empty() {
        return Some(found);
    }
    let is_local = text == "localhost" || text.ends_with(".localhost");
    is_local.then(|| {
        let mut both = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        if families.v6_first {
            both.reverse();
        }
        both
    })
}
