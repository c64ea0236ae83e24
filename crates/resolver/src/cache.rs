//! Remembers answers for as long as their servers said.

use std::{collections::HashMap, net::IpAddr, net::SocketAddr, time::Duration};

use tokio::time::Instant;

use crate::{message::Kind, name::Name};

/// Answers of one pod that are remembered; about 150 bytes each.
const MOST: usize = 512;

/// What was found for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// Its addresses of one kind; none if it has none of this kind.
    Addresses(Vec<IpAddr>),
    /// There is no such name.
    NoName,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    /// Who gave the answers: other servers may know otherwise.
    servers: Vec<SocketAddr>,
    answers: HashMap<(Name, Kind), (Known, Instant)>,
}

impl Cache {
    /// An answer that still holds.
    pub(crate) fn get(&mut self, servers: &[SocketAddr], name: &Name, kind: Kind) -> Option<Known> {
        self.forget_unless(servers);
        let (known, until) = self.answers.get(&(name.clone(), kind))?;
        (Instant::now() < *until).then(|| known.clone())
    }

    /// Remembers an answer. When there are too many, those that hold least
    /// longer are forgotten.
    pub(crate) fn put(
        &mut self,
        servers: &[SocketAddr],
        (name, kind): (Name, Kind),
        known: Known,
        holds: Duration,
    ) {
        self.forget_unless(servers);
        if holds.is_zero() {
            return;
        }
        let now = Instant::now();
        let key = (name, kind);
        if self.answers.len() >= MOST && !self.answers.contains_key(&key) {
            self.answers.retain(|_, (_, until)| now < *until);
            if self.answers.len() >= MOST {
                let first = self.answers.iter().min_by_key(|(_, (_, until))| *until);
                let first = first.map(|(key, _)| key.clone());
                first.map(|key| self.answers.remove(&key));
            }
        }
        self.answers.insert(key, (known, now + holds));
    }

    fn forget_unless(&mut self, servers: &[SocketAddr]) {
        if self.servers != servers {
            self.answers.clear();
            servers.clone_into(&mut self.servers);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(number: usize) -> Name {
        Name::parse(&format!("n{number}.example.")).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_forgotten_when_its_time_is_over() {
        let mut cache = Cache::default();
        cache.put(&[], (name(1), Kind::V4), Known::NoName, Duration::from_secs(5));
        cache.put(&[], (name(2), Kind::V4), Known::NoName, Duration::ZERO);
        assert_eq!(cache.get(&[], &name(1), Kind::V4), Some(Known::NoName));
        assert_eq!(cache.get(&[], &name(1), Kind::V6), None);
        assert_eq!(cache.get(&[], &name(2), Kind::V4), None);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(cache.get(&[], &name(1), Kind::V4), None);
    }

    #[tokio::test(start_paused = true)]
    async fn other_servers_are_asked_anew() {
        let other = ["192.0.2.1:53".parse().unwrap()];
        let mut cache = Cache::default();
        cache.put(&[], (name(1), Kind::V4), Known::NoName, Duration::from_secs(5));
        assert_eq!(cache.get(&other, &name(1), Kind::V4), None);
    }

    proptest! {
        #[test]
        fn there_are_never_too_many(lives in prop::collection::vec(1_u64..5000, 600..1200)) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            runtime.block_on(async {
                let mut cache = Cache::default();
                for (number, life) in lives.iter().enumerate() {
                    let key = (name(number), Kind::V4);
                    cache.put(&[], key, Known::NoName, Duration::from_millis(*life));
                    prop_assert!(cache.answers.len() <= MOST);
                    prop_assert!(cache.get(&[], &name(number), Kind::V4).is_some());
                }
                Ok(())
            })?;
        }
    }
}
