//! Names below the cluster's domain, where no server is asked for them.
//!
//! Source: Kubernetes DNS specification 1.1.0, 2.3 to 2.5. What it says of ports
//! (SRV records) nobody asks for here.

use std::net::IpAddr;

use krustlet_protocol::ServiceName;

/// What a name below the domain asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question<'a> {
    /// `SERVICE.NAMESPACE.svc`.
    Service { namespace: &'a str, name: &'a str },
    /// `HOSTNAME.SERVICE.NAMESPACE.svc`.
    Endpoint { namespace: &'a str, name: &'a str, hostname: &'a str },
    /// Anything else: there is no such name.
    Nothing,
}

/// What is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// These addresses, of any kind; maybe none.
    Addresses(Vec<IpAddr>),
    /// What this name has.
    Alias(String),
    /// There is no such name.
    NoName,
}

/// Reads a name. None if it is not below the domain, or if servers are asked for
/// names that are.
pub(crate) fn question<'a>(name: &'a str, domain: &str) -> Option<Question<'a>> {
    if domain.is_empty() {
        return None;
    }
    let inner = name.strip_suffix(domain)?;
    if inner.is_empty() {
        return Some(Question::Nothing);
    }
    let labels: Vec<&str> = inner.strip_suffix('.')?.split('.').collect();
    Some(match labels[..] {
        [name, namespace, "svc"] => Question::Service { namespace, name },
        [hostname, name, namespace, "svc"] => Question::Endpoint { namespace, name, hostname },
        _ => Question::Nothing,
    })
}

impl Question<'_> {
    /// What follows from what the name of the Service stands for.
    pub(crate) fn answer(self, service: Option<ServiceName>) -> Told {
        match (self, service) {
            (_, None)
            | (Self::Nothing, _)
            | (
                Self::Endpoint { .. },
                Some(ServiceName::Addresses(_) | ServiceName::Elsewhere(_)),
            ) => Told::NoName,
            (Self::Service { .. }, Some(ServiceName::Addresses(addresses))) => {
                Told::Addresses(addresses)
            }
            (Self::Service { .. }, Some(ServiceName::Endpoints(endpoints))) => {
                let addresses = endpoints.into_iter().map(|one| one.address);
                Told::Addresses(addresses.collect())
            }
            (Self::Service { .. }, Some(ServiceName::Elsewhere(name))) => Told::Alias(name),
            (Self::Endpoint { hostname, .. }, Some(ServiceName::Endpoints(endpoints))) => {
                let named = endpoints.into_iter().filter(|one| one.name == hostname);
                let addresses: Vec<IpAddr> = named.map(|one| one.address).collect();
                if addresses.is_empty() { Told::NoName } else { Told::Addresses(addresses) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use krustlet_protocol::NamedAddress;

    use super::*;

    #[test]
    fn names_below_the_domain_are_services_and_their_endpoints() {
        let of = |name| question(name, "cluster.local");
        assert_eq!(
            of("web.shop.svc.cluster.local"),
            Some(Question::Service { namespace: "shop", name: "web" })
        );
        assert_eq!(
            of("web-0.web.shop.svc.cluster.local"),
            Some(Question::Endpoint { namespace: "shop", name: "web", hostname: "web-0" })
        );
        for nothing in [
            "cluster.local",
            "svc.cluster.local",
            "shop.svc.cluster.local",
            "10-1-0-2.shop.pod.cluster.local",
            "a.web-0.web.shop.svc.cluster.local",
            "example.com.cluster.local",
        ] {
            assert_eq!(of(nothing), Some(Question::Nothing), "{nothing}");
        }
        for other in ["example.com", "mycluster.local", "local", "cluster.local.example"] {
            assert_eq!(of(other), None, "{other}");
        }
        assert_eq!(question("web.shop.svc.cluster.local", ""), None);
    }

    #[test]
    fn what_a_name_has_follows_from_the_kind_of_service() {
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        let service = Question::Service { namespace: "n", name: "s" };
        let endpoint = Question::Endpoint { namespace: "n", name: "s", hostname: "a" };
        let addresses = ServiceName::Addresses(vec![ip("10.96.0.7")]);
        let named = |name: &str, address| NamedAddress { address: ip(address), name: name.into() };
        let endpoints =
            ServiceName::Endpoints(vec![named("a", "10.1.0.2"), named("b", "10.1.0.3")]);
        let elsewhere = ServiceName::Elsewhere("x.example".into());
        let told = |addresses: &[&str]| Told::Addresses(addresses.iter().map(|a| ip(a)).collect());
        assert_eq!(service.answer(Some(addresses.clone())), told(&["10.96.0.7"]));
        assert_eq!(service.answer(Some(endpoints.clone())), told(&["10.1.0.2", "10.1.0.3"]));
        assert_eq!(service.answer(Some(elsewhere.clone())), Told::Alias("x.example".into()));
        assert_eq!(endpoint.answer(Some(endpoints.clone())), told(&["10.1.0.2"]));
        let empty = ServiceName::Endpoints(vec![]);
        assert_eq!(service.answer(Some(empty.clone())), told(&[]));
        for none in [None, Some(addresses), Some(elsewhere), Some(empty)] {
            assert_eq!(endpoint.answer(none), Told::NoName);
        }
        assert_eq!(Question::Nothing.answer(Some(endpoints)), Told::NoName);
        assert_eq!(service.answer(None), Told::NoName);
    }
}
