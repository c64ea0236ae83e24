//! Durations as Go writes them: `1h30m`, `10s`, `1.5s`, `250ms`.

use std::time::Duration;

use krustlet_model::time::go_duration;
use serde::{Deserialize, Deserializer, de::Error};

/// A duration of a configuration file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GoDuration(pub(crate) Duration);

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        go_duration(&text).map(Self).ok_or_else(|| {
            D::Error::custom(format!("{text:?} is not a duration such as \"10s\" or \"1h30m\""))
        })
    }
}
