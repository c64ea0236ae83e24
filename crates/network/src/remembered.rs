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
}

/// The same, as it is written down.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Written {
    current: Vec<String>,
    led: Vec<String>,
}

impl Remembered {
    /// Reads the file. What is not there or damaged is nothing: the Node says
    /// it again.
    pub(crate) fn read(path: &Path) -> Self {
        let written: Written = kept::read(path);
        Self {
            current: PodRanges::parse(&written.current).ok(),
            led: written.led.iter().filter_map(|text| text.parse().ok()).collect(),
        }
    }

    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let written = Written {
            current: self.current.iter().flat_map(PodRanges::iter).map(text).collect(),
            led: self.led.iter().copied().map(text).collect(),
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
        };
        remembered.write(&path).unwrap();
        assert_eq!(Remembered::read(&path), remembered);
        fs::write(&path, "{").unwrap();
        assert_eq!(Remembered::read(&path), Remembered::default());
    }
}
