//! Times as the API writes them.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fraction_is_cut_off() {
        let at: Timestamp = "2026-11-23T20:38:40.999Z".parse().unwrap();
        assert_eq!(from_api_time(&api_time(at)), "2026-11-23T20:38:40Z".parse().unwrap());
    }
}
