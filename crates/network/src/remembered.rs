//! The ranges that an agent went by, for the one after it: pods that it left go
//! on, and may be started again, before the API server has answered.
//!
//! ```text
//! run/ranges.json      replaced whole
//! ```

use std::{io, path::Path};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{kept, ranges::PodRanges};

/// What an agent went by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Remembered {
    /// The ranges that new pods get addresses of.
    pub(crate) current: Option<PodRanges>,
    /// Every range that something leads to.
    pub(crate) led: Vec<IpNet>,
    /// Whether there was more, which cannot be read any more.
    pub(crate) is_lost: bool,
}

/// The same, as it is written down.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Written {
    current: Vec<String>,
    led: Vec<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_lost: bool,
}

impl Remembered {
    /// Reads the file. Of one that is damaged the Node says again what ranges there
    /// are.
    pub(crate) fn read(path: &Path) -> Self {
        let Some(written) = kept::read::<Written>(path) else {
            return Self { is_lost: true, ..Self::default() };
        };
        let current = PodRanges::parse(&written.current).ok();
        Self {
            // A range that an older agent took and this one does not.
            is_lost: written.is_lost || current.is_none() && !written.current.is_empty(),
            current,
            led: written.led.iter().filter_map(|text| text.parse().ok()).collect(),
        }
    }

    /// Whether pods had addresses of their own.
    pub(crate) fn had(&self) -> bool {
        self.current.is_some() || self.is_lost
    }

    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let written = Written {
            current: self.current.iter().flat_map(PodRanges::iter).map(text).collect(),
            led: self.led.iter().copied().map(text).collect(),
            is_lost: self.is_lost,
        };
        kept::write(path, &written)
    }
}

fn text(range: IpNet) -> String {
    range.to_string()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("ranges.json");
        assert_eq!(Remembered::read(&path), Remembered::default());
        let remembered = Remembered {
            current: PodRanges::parse(&["10.244.1.0/24", "fd00::/64"]).ok(),
            led: vec!["10.244.1.0/24".parse().unwrap(), "10.244.9.7/32".parse().unwrap()],
            is_lost: false,
        };
        remembered.write(&path).unwrap();
        assert_eq!(Remembered::read(&path), remembered);
    }

    #[test]
    fn of_a_damaged_file_it_is_known_that_pods_had_addresses() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("ranges.json");
        assert!(!Remembered::read(&path).had());
        let refused = r#"{"current":["169.254.7.0/24"],"led":[]}"#;
        for damaged in ["", "{", "\0\0\0", refused] {
            fs::write(&path, damaged).unwrap();
            let lost = Remembered::read(&path);
            assert!(lost.had(), "{damaged:?}");
            // Also by the agent after the next one.
            lost.write(&path).unwrap();
            assert_eq!(Remembered::read(&path), lost);
        }
    }
}
