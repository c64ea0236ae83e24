//! Times as the API and Go write them.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff as api};

/// A time as the API has it: whole seconds, the fraction cut off.
///
/// The API's types come with a `jiff` of their own, hence the conversion.
/// Source: kubelet, `normalizeStatus` in `pkg/kubelet/status/status_manager.go`.
#[must_use]
pub fn api_time(at: Timestamp) -> Time {
    Time(api::Timestamp::from_second(at.as_second()).unwrap_or(api::Timestamp::MAX))
}

/// A time of the API as this project's crates have it.
#[must_use]
pub fn from_api_time(at: &Time) -> Timestamp {
    Timestamp::from_second(at.0.as_second()).unwrap_or(Timestamp::MAX)
}

/// A duration as Go writes it (`1h30m`, `10s`, `1.5s`, `250ms`); None if it is
/// not one or negative.
#[must_use]
pub fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').filter(|at| *at > 0)?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        total = total.checked_add(part)?;
        rest = tail;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fraction_is_cut_off() {
        let at: Timestamp = "2026-11-23T20:38:40.999Z".parse().unwrap();
        assert_eq!(from_api_time(&api_time(at)), "2026-11-23T20:38:40Z".parse().unwrap());
    }

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, wanted) in [
            ("0", Some(Duration::ZERO)),
            ("10s", Some(Duration::from_secs(10))),
            ("1h30m0s", Some(Duration::from_mins(90))),
            ("1.5s", Some(Duration::from_millis(1500))),
            ("250ms", Some(Duration::from_millis(250))),
            ("", None),
            ("10", None),
            ("-1s", None),
            ("s", None),
            ("10 s", None),
            ("1.2.3s", None),
            ("99999999999999999999h", None),
        ] {
            assert_eq!(go_duration(text), wanted, "{text:?}");
        }
    }
}
