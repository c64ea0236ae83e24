//! Annotations by which a pod bounds its http guests.
//!
//! | annotation | meaning |
//! |---|---|
//! | `http.krustlet.dev/max-concurrent-requests` | requests that a container serves at once; more wait |
//! | `http.krustlet.dev/request-timeout` | time for a request to be answered whole |
//! | `http.krustlet.dev/idle-timeout` | how long a connection is kept on which nothing is asked |
//! | `http.krustlet.dev/max-request-body-size` | bytes of a request's body |
//! | `http.krustlet.dev/max-instance-reuse-count` | requests that an instance answers before another takes its place |
//! | `http.krustlet.dev/max-instance-concurrent-reuse-count` | requests at once in an instance, which WASI 0.2 has not |
//! | `http.krustlet.dev/idle-instance-timeout` | how long an instance without a request is kept for the next one |
//!
//! The last three have the meaning and the names of the options of `wasmtime serve`.

use std::time::Duration;

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::api::resource::Quantity};

use crate::{quantity, time::go_duration};

/// The domain of the annotations.
const DOMAIN: &str = "http.krustlet.dev/";

/// Requests at once that are believed to be meant; a process has 20,000
/// descriptors.
const MOST_REQUESTS: u32 = 10_000;

/// Requests of one instance that are believed to be meant: it is to end some time,
/// and what it has lost of its memory with it.
const MOST_REUSE: u32 = 1_000_000;

/// Requests at once in one instance that are believed to be meant. What each may
/// have, in handles, is given to all of them together.
const MOST_CONCURRENT_REUSE: u32 = 64;

/// The longest time that is believed to be meant.
const LONGEST: Duration = Duration::from_hours(24);

/// What a pod says; what it does not say is the node's to decide.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpAnnotations {
    /// 1 to 10,000.
    pub max_concurrent_requests: Option<u32>,
    /// More than nothing, at most a day.
    pub request_timeout: Option<Duration>,
    /// As `request_timeout`.
    pub idle_timeout: Option<Duration>,
    /// Bytes.
    pub max_request_body: Option<u64>,
    /// 1 to 1,000,000.
    pub max_instance_reuse: Option<u32>,
    /// 1 to 64.
    pub max_instance_concurrent_reuse: Option<u32>,
    /// As `request_timeout`.
    pub idle_instance_timeout: Option<Duration>,
}

/// An annotation that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum HttpAnnotationError {
    #[error(
        "there is no annotation {name}; of this domain there are max-concurrent-requests, \
         request-timeout, idle-timeout, max-request-body-size, max-instance-reuse-count, \
         max-instance-concurrent-reuse-count and idle-instance-timeout"
    )]
    Unknown { name: String },
    #[error("annotation {name}: {value:?} is not {wanted}")]
    Value { name: String, value: String, wanted: &'static str },
}

impl HttpAnnotations {
    /// Reads a pod's annotations of the domain.
    ///
    /// # Errors
    ///
    /// The first that is not known or whose value makes no sense.
    pub fn of(pod: &Pod) -> Result<Self, HttpAnnotationError> {
        let mut all = Self::default();
        for (name, value) in pod.metadata.annotations.iter().flatten() {
            let Some(short) = name.strip_prefix(DOMAIN) else { continue };
            let refuse = |wanted| HttpAnnotationError::Value {
                name: name.clone(),
                value: value.clone(),
                wanted,
            };
            let time = || {
                go_duration(value)
                    .filter(|time| !time.is_zero() && *time <= LONGEST)
                    .ok_or_else(|| refuse("a time such as 30s, at most 24h"))
            };
            let number = |most, wanted| {
                let number = value.parse().ok().filter(|number| (1..=most).contains(number));
                number.ok_or_else(|| refuse(wanted))
            };
            match short {
                "max-concurrent-requests" => {
                    let number = number(MOST_REQUESTS, "a number from 1 to 10000")?;
                    all.max_concurrent_requests = Some(number);
                }
                "max-instance-reuse-count" => {
                    let number = number(MOST_REUSE, "a number from 1 to 1000000")?;
                    all.max_instance_reuse = Some(number);
                }
                "max-instance-concurrent-reuse-count" => {
                    let number = number(MOST_CONCURRENT_REUSE, "a number from 1 to 64")?;
                    all.max_instance_concurrent_reuse = Some(number);
                }
                "idle-instance-timeout" => all.idle_instance_timeout = Some(time()?),
                "request-timeout" => all.request_timeout = Some(time()?),
                "idle-timeout" => all.idle_timeout = Some(time()?),
                "max-request-body-size" => {
                    let bytes = quantity::bytes(&Quantity(value.clone())).ok();
                    let bytes = bytes.and_then(|bytes| u64::try_from(bytes).ok());
                    all.max_request_body =
                        Some(bytes.ok_or_else(|| refuse("a size such as 10Mi"))?);
                }
                _ => return Err(HttpAnnotationError::Unknown { name: name.clone() }),
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(name: &str, value: &str) -> Result<HttpAnnotations, HttpAnnotationError> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"annotations": {name: value, "other.example/x": "y"}},
        }))
        .unwrap();
        HttpAnnotations::of(&pod)
    }

    #[test]
    fn what_makes_sense_is_read() {
        let none = HttpAnnotations::default();
        assert_eq!(HttpAnnotations::of(&Pod::default()), Ok(none.clone()));
        assert_eq!(
            read("http.krustlet.dev/max-concurrent-requests", "8"),
            Ok(HttpAnnotations { max_concurrent_requests: Some(8), ..none.clone() }),
        );
        assert_eq!(
            read("http.krustlet.dev/request-timeout", "1m30s"),
            Ok(HttpAnnotations { request_timeout: Some(Duration::from_secs(90)), ..none.clone() }),
        );
        assert_eq!(
            read("http.krustlet.dev/idle-timeout", "500ms"),
            Ok(HttpAnnotations { idle_timeout: Some(Duration::from_millis(500)), ..none.clone() }),
        );
        assert_eq!(
            read("http.krustlet.dev/max-request-body-size", "1Mi"),
            Ok(HttpAnnotations { max_request_body: Some(1 << 20), ..none.clone() }),
        );
        assert_eq!(
            read("http.krustlet.dev/max-instance-reuse-count", "1000000"),
            Ok(HttpAnnotations { max_instance_reuse: Some(1_000_000), ..none.clone() }),
        );
        assert_eq!(
            read("http.krustlet.dev/max-instance-concurrent-reuse-count", "64"),
            Ok(HttpAnnotations { max_instance_concurrent_reuse: Some(64), ..none.clone() }),
        );
        let second = Some(Duration::from_secs(1));
        assert_eq!(
            read("http.krustlet.dev/idle-instance-timeout", "1s"),
            Ok(HttpAnnotations { idle_instance_timeout: second, ..none }),
        );
    }

    #[test]
    fn nonsense_is_refused_with_what_would_do() {
        for (name, value, says) in [
            ("max-concurrent-requests", "0", "\"0\" is not a number from 1 to 10000"),
            ("max-concurrent-requests", "many", "\"many\" is not"),
            ("max-concurrent-requests", "10001", "10001"),
            ("request-timeout", "30", "\"30\" is not a time such as 30s"),
            ("request-timeout", "0s", "\"0s\" is not"),
            ("idle-timeout", "25h", "at most 24h"),
            ("idle-timeout", "-1s", "\"-1s\" is not"),
            ("max-request-body-size", "-1", "a size such as 10Mi"),
            ("max-request-body-size", "big", "\"big\" is not"),
            ("max-instance-reuse-count", "0", "a number from 1 to 1000000"),
            ("max-instance-concurrent-reuse-count", "65", "a number from 1 to 64"),
            ("idle-instance-timeout", "0s", "\"0s\" is not a time"),
            ("max-concurent-requests", "1", "there is no annotation http.krustlet.dev/max-concur"),
        ] {
            let error = read(&format!("http.krustlet.dev/{name}"), value).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
