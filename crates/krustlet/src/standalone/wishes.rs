//! What `krustlet run` asks of the agent beside pods. Whoever starts the agent is
//! given it; for others an agent that runs already is no other.

use std::path::{self, PathBuf};

use anyhow::{Context as _, Result};
use krustlet_network::PodRanges;
use serde::{Deserialize, Serialize};

use crate::cli::{PodCidrArgs, RegistryArgs};

/// What is asked for; nothing is whatever there is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Wishes {
    /// Ranges that pods get addresses of, at most one of each family, in order.
    pub(crate) pod_cidr: Vec<String>,
    /// A file about registries; absolute.
    pub(crate) registry_config: Option<PathBuf>,
}

impl Wishes {
    /// Those of a command line.
    ///
    /// # Errors
    ///
    /// Names the flag that cannot be used.
    pub(crate) fn new(pod_cidr: &PodCidrArgs, registry: &RegistryArgs) -> Result<Self> {
        let mut ranges = Vec::new();
        if !pod_cidr.pod_cidr.is_empty() {
            let read = PodRanges::parse(&pod_cidr.pod_cidr).context("--pod-cidr cannot be used")?;
            ranges.extend(read.iter().map(|range| range.to_string()));
            ranges.sort();
        }
        // What has no path, as the shell's `<(…)`, goes by the one that was given.
        let absolute = |file: &PathBuf| {
            let named = || file.metadata().and_then(|_| path::absolute(file));
            let found = file.canonicalize().or_else(|_| named());
            found.with_context(|| format!("cannot read {}", file.display()))
        };
        let registry_config = registry.registry_config.as_ref().map(absolute).transpose()?;
        Ok(Self { pod_cidr: ranges, registry_config })
    }

    /// Why an agent that was started with these cannot do what somebody asks for.
    pub(crate) fn refusal(&self, asked: &Self) -> Option<String> {
        let but = |has: String, flag: &str| {
            format!(
                "the agent of this root directory {has}: stop its pods first, leave {flag} out, \
                 or name another directory with --root-dir"
            )
        };
        if !asked.pod_cidr.is_empty() && asked.pod_cidr != self.pod_cidr {
            let has = match &self.pod_cidr[..] {
                [] => "gives pods 127.0.0.1".to_owned(),
                ranges => format!("gives pods addresses of {}", ranges.join(",")),
            };
            return Some(but(has, "--pod-cidr"));
        }
        if asked.registry_config.is_some() && asked.registry_config != self.registry_config {
            let has = match &self.registry_config {
                None => "was started without a file about registries".to_owned(),
                Some(file) => format!("was started with {} about registries", file.display()),
            };
            return Some(but(has, "--registry-config"));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(ranges: &[&str], registries: Option<&str>) -> Wishes {
        let pod_cidr = ranges.iter().map(ToString::to_string).collect();
        let registry_config = registries.map(PathBuf::from);
        Wishes::new(&PodCidrArgs { pod_cidr }, &RegistryArgs { registry_config }).unwrap()
    }

    #[test]
    fn an_agent_does_what_it_was_started_for_and_nothing_else() {
        let both = wishes(&["fd00:1::7/64", "10.99.0.0/24"], Some("/dev/null"));
        let none = wishes(&[], None);
        let same = wishes(&["10.99.0.0/24", "fd00:1::/64"], Some("/dev/../dev/null"));
        for asked in [&none, &both, &same] {
            assert_eq!(both.refusal(asked), None);
        }
        let other = wishes(&["10.98.0.0/24"], None);
        let elsewhere = wishes(&[], Some("/dev/zero"));
        for (agent, asked, words) in [
            (&both, &other, "gives pods addresses of 10.99.0.0/24,fd00:1::/64"),
            (&none, &other, "gives pods 127.0.0.1"),
            (&both, &elsewhere, "was started with /dev/null about"),
            (&none, &elsewhere, "was started without a file"),
        ] {
            let why = agent.refusal(asked).unwrap();
            assert!(why.contains(words), "{why}");
        }
    }

    #[test]
    fn a_file_without_a_path_is_read_as_it_was_given() {
        let (pipe, _end) = std::io::pipe().unwrap();
        let given = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&pipe));
        assert_eq!(wishes(&[], Some(&given)).registry_config, Some(PathBuf::from(given)));
    }

    #[test]
    fn a_flag_that_cannot_be_used_is_named() {
        let refused = |range: &str, file: Option<&str>| {
            let pod_cidr = PodCidrArgs { pod_cidr: vec![range.to_owned()] };
            let registry = RegistryArgs { registry_config: file.map(PathBuf::from) };
            format!("{:#}", Wishes::new(&pod_cidr, &registry).unwrap_err())
        };
        let said = refused("127.0.0.0/24", None);
        assert!(said.contains("--pod-cidr") && said.contains("loopback"), "{said}");
        let said = refused("10.99.0.0/24", Some("/nowhere/registries.yaml"));
        assert!(said.contains("/nowhere/registries.yaml"), "{said}");
    }
}
