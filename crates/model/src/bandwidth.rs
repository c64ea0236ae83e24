//! Annotations by which a pod bounds what its sockets do.
//!
//! | annotation | meaning |
//! |---|---|
//! | `kubernetes.io/ingress-bandwidth` | bits per second that it receives from the network |
//! | `kubernetes.io/egress-bandwidth` | bits per second that it sends |
//! | `network.krustlet.dev/max-sockets` | sockets open at once; the node may allow fewer |
//! | `network.krustlet.dev/max-lookups` | look-ups of names under way at once; more wait |
//!
//! Source of the first two: `ExtractPodBandwidthResources` in
//! `pkg/util/bandwidth/utils.go` of Kubernetes, which network plugins go by.

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::api::resource::Quantity};

use crate::{
    outbound::{DOMAIN, HOSTS},
    quantity,
};

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

/// Bits per second that are believed to be meant: 1k to 1P.
const BANDWIDTHS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// The most sockets that a pod may ask for. A process has 20,000 descriptors.
pub const MOST_SOCKETS: u32 = 16_384;

/// The most look-ups; each holds a socket and a question.
const MOST_LOOKUPS: u32 = 256;

/// What a pod says; what it does not say is the node's to decide.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketAnnotations {
    /// Bits per second from the network, 1k to 1P.
    pub ingress_bits: Option<u64>,
    /// Bits per second to the network, 1k to 1P.
    pub egress_bits: Option<u64>,
    /// 1 to [`MOST_SOCKETS`].
    pub max_sockets: Option<u32>,
    /// 1 to 256.
    pub max_lookups: Option<u32>,
}

/// An annotation that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum SocketAnnotationError {
    #[error(
        "there is no annotation {name}; of this domain there are max-sockets, max-lookups and \
         allowed-outbound-hosts"
    )]
    Unknown { name: String },
    #[error("annotation {name}: {value:?} is not {wanted}")]
    Value { name: String, value: String, wanted: &'static str },
}

impl SocketAnnotations {
    /// Reads a pod's annotations.
    ///
    /// # Errors
    ///
    /// The first that is not known or whose value makes no sense.
    pub fn of(pod: &Pod) -> Result<Self, SocketAnnotationError> {
        if let Some(name) = unknown(pod) {
            return Err(SocketAnnotationError::Unknown { name: name.to_owned() });
        }
        let mut all = Self::default();
        for (name, value) in pod.metadata.annotations.iter().flatten() {
            let refuse = |wanted| SocketAnnotationError::Value {
                name: name.clone(),
                value: value.clone(),
                wanted,
            };
            let bandwidth = || {
                let bits = quantity::bytes(&Quantity(value.clone())).ok();
                let bits = bits.and_then(|bits| u64::try_from(bits).ok());
                bits.filter(|bits| BANDWIDTHS.contains(bits))
                    .ok_or_else(|| refuse("a bandwidth in bits per second from 1k to 1P, as 10M"))
            };
            let number = |most: u32, wanted| {
                let number = value.parse().ok().filter(|number| (1..=most).contains(number));
                number.ok_or_else(|| refuse(wanted))
            };
            match (name.as_str(), name.strip_prefix(DOMAIN)) {
                (INGRESS, _) => all.ingress_bits = Some(bandwidth()?),
                (EGRESS, _) => all.egress_bits = Some(bandwidth()?),
                (_, Some("max-sockets")) => {
                    all.max_sockets = Some(number(MOST_SOCKETS, "a number from 1 to 16384")?);
                }
                (_, Some("max-lookups")) => {
                    all.max_lookups = Some(number(MOST_LOOKUPS, "a number from 1 to 256")?);
                }
                // Whoever needs the list reads it.
                (_, Some(_) | None) => {}
            }
        }
        Ok(all)
    }
}

/// The first annotation of the domain that there is not.
fn unknown(pod: &Pod) -> Option<&str> {
    const KNOWN: [&str; 3] = ["max-sockets", "max-lookups", HOSTS];
    let names = pod.metadata.annotations.iter().flatten().map(|(name, _)| name.as_str());
    names
        .into_iter()
        .find(|name| name.strip_prefix(DOMAIN).is_some_and(|name| !KNOWN.contains(&name)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(name: &str, value: &str) -> Result<SocketAnnotations, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"annotations": {name: value, "other.example/x": "y"}},
        }))
        .unwrap();
        SocketAnnotations::of(&pod).map_err(|error| error.to_string())
    }

    #[test]
    fn what_makes_sense_is_read() {
        let none = SocketAnnotations::default();
        assert_eq!(SocketAnnotations::of(&Pod::default()), Ok(none.clone()));
        for (value, bits) in [
            ("1k", 1_000),
            ("10M", 10_000_000),
            ("1Mi", 1 << 20),
            ("2500000", 2_500_000),
            ("1P", 1_000_000_000_000_000),
        ] {
            let ingress = SocketAnnotations { ingress_bits: Some(bits), ..none.clone() };
            assert_eq!(read("kubernetes.io/ingress-bandwidth", value), Ok(ingress));
            let egress = SocketAnnotations { egress_bits: Some(bits), ..none.clone() };
            assert_eq!(read("kubernetes.io/egress-bandwidth", value), Ok(egress));
        }
        assert_eq!(
            read("network.krustlet.dev/max-sockets", "7"),
            Ok(SocketAnnotations { max_sockets: Some(7), ..none.clone() }),
        );
        assert_eq!(
            read("network.krustlet.dev/max-lookups", "256"),
            Ok(SocketAnnotations { max_lookups: Some(256), ..none }),
        );
    }

    #[test]
    fn what_makes_no_sense_is_told_with_what_would() {
        for value in ["", "fast", "999", "-1M", "1001T", "1E"] {
            assert_eq!(
                read("kubernetes.io/egress-bandwidth", value),
                Err(format!(
                    "annotation kubernetes.io/egress-bandwidth: {value:?} is not a bandwidth in \
                     bits per second from 1k to 1P, as 10M"
                )),
            );
        }
        for value in ["", "0", "-1", "16385", "1k"] {
            read("network.krustlet.dev/max-sockets", value).unwrap_err();
        }
        for value in ["0", "257"] {
            read("network.krustlet.dev/max-lookups", value).unwrap_err();
        }
        assert_eq!(
            read("network.krustlet.dev/max-connections", "3"),
            Err("there is no annotation network.krustlet.dev/max-connections; of this domain \
                 there are max-sockets, max-lookups and allowed-outbound-hosts"
                .to_owned()),
        );
    }
}
