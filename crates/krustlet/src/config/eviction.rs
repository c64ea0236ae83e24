//! `evictionHard`: how much of the machine must stay free for the node not to
//! count as short of it.
//!
//! Source: kubelet, `parseThresholdStatement` in
//! `pkg/kubelet/eviction/helpers.go`; defaults, `DefaultEvictionHard` in
//! `pkg/kubelet/eviction/defaults_linux.go`.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use krustlet_cluster::node::{EvictionThresholds, Threshold};

/// Reads the field. As with a kubelet, a map that is given stands alone: what
/// it does not name has no threshold, unless `merges` asks for the defaults.
///
/// # Errors
///
/// A sentence that names the signal, the value and what would do.
pub(crate) fn thresholds(
    given: Option<&BTreeMap<String, String>>,
    merges: bool,
) -> Result<EvictionThresholds, String> {
    let defaults = EvictionThresholds::default();
    let Some(given) = given else { return Ok(defaults) };
    let mut read = if merges { defaults } else { EvictionThresholds::none(defaults.stays) };
    for (signal, text) in given {
        let threshold = match signal.as_str() {
            "memory.available" => &mut read.memory,
            "nodefs.available" => &mut read.storage,
            "nodefs.inodesFree" => &mut read.inodes,
            "imagefs.available" => &mut read.images,
            "imagefs.inodesFree" => &mut read.image_inodes,
            "pid.available" => &mut read.pids,
            _ => {
                return Err(format!(
                    "{signal:?} is not looked at; memory.available, nodefs.available, \
                     nodefs.inodesFree, imagefs.available, imagefs.inodesFree and pid.available are"
                ));
            }
        };
        *threshold = one(text).map_err(|why| format!("{signal}: {text:?} {why}"))?;
    }
    Ok(read)
}

fn one(text: &str) -> Result<Threshold, &'static str> {
    if let Some(number) = text.strip_suffix('%') {
        let percent: f64 = number.parse().map_err(|_| "is not a percentage such as 10%")?;
        if !(0.0..=100.0).contains(&percent) {
            return Err("is not between 0% and 100%");
        }
        // Both turn a signal off.
        let is_off = percent <= 0.0 || percent >= 100.0;
        return Ok(if is_off { Threshold::NONE } else { Threshold::Share(percent / 100.0) });
    }
    let amount = krustlet_model::quantity::bytes(&Quantity(text.to_owned()))
        .map_err(|_| "is neither an amount such as 100Mi nor a percentage such as 10%")?;
    match u64::try_from(amount) {
        Ok(amount) if amount > 0 => Ok(Threshold::Amount(amount)),
        Ok(_) | Err(_) => Err("must be more than nothing; 0% turns a signal off"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)], merges: bool) -> Result<EvictionThresholds, String> {
        let given = pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
        thresholds(Some(&given.collect()), merges)
    }

    #[test]
    fn amounts_and_shares_are_read_and_what_is_not_named_has_none() {
        let given = [
            ("memory.available", "200Mi"),
            ("nodefs.available", "1.5%"),
            ("imagefs.available", "1Gi"),
            ("pid.available", "10%"),
        ];
        let expected = EvictionThresholds {
            memory: Threshold::Amount(200 << 20),
            storage: Threshold::Share(0.015),
            images: Threshold::Amount(1 << 30),
            pids: Threshold::Share(0.1),
            ..EvictionThresholds::none(EvictionThresholds::default().stays)
        };
        assert_eq!(read(&given, false), Ok(expected));
        assert_eq!(thresholds(None, false), Ok(EvictionThresholds::default()));
        let merged = read(&[("nodefs.available", "1%")], true);
        let storage = Threshold::Share(0.01);
        assert_eq!(merged, Ok(EvictionThresholds { storage, ..EvictionThresholds::default() }));
    }

    #[test]
    fn nothing_and_everything_turn_a_signal_off() {
        for off in ["0%", "100%", "0.0%"] {
            let read = read(&[("nodefs.available", off)], true).unwrap();
            assert_eq!(read.storage, Threshold::NONE, "{off}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for (signal, text, words) in [
            ("containerfs.available", "10%", "\"containerfs.available\" is not looked at"),
            ("memory.availabel", "10%", "memory.available, nodefs.available"),
            ("nodefs.available", "ten%", "nodefs.available: \"ten%\" is not a percentage"),
            ("nodefs.available", "-1%", "between 0% and 100%"),
            ("nodefs.available", "101%", "between 0% and 100%"),
            ("nodefs.available", "NaN%", "between 0% and 100%"),
            ("memory.available", "much", "memory.available: \"much\" is neither an amount"),
            ("memory.available", "0", "must be more than nothing"),
            ("memory.available", "-5Mi", "must be more than nothing"),
        ] {
            let error = read(&[(signal, text)], false).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
