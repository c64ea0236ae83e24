//! How registries are reached: mirrors, plain HTTP, private CAs. The file given
//! with `--registry-config`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use krustlet_image::{Mirror, RegistryRules};
use serde::Deserialize;

use super::ConfigError;

/// The file's content.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct RegistryConfiguration {
    /// Where images whose names begin with a prefix are looked for; the
    /// longest prefix counts.
    mirrors: Vec<MirrorConfiguration>,
    /// Hosts (`host` or `host:port`) that are spoken to without TLS.
    #[serde(rename = "plainHTTP")]
    plain_http: BTreeSet<String>,
    /// PEM files with CAs that are trusted besides the system's.
    ca_files: Vec<PathBuf>,
}

/// One mirror.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MirrorConfiguration {
    /// Such as `registry.k8s.io/e2e-test-images`.
    prefix: String,
    /// Such as `http://10.0.0.2:5000/e2e-test-images`, in the order they are asked.
    endpoints: Vec<String>,
    /// Whether the registry itself is asked last; true by default.
    #[serde(default = "yes")]
    fall_back: bool,
}

fn yes() -> bool {
    true
}

/// Reads the file; without one, registries are reached by HTTPS as they are
/// named.
pub(crate) fn rules(path: Option<&Path>) -> Result<RegistryRules, ConfigError> {
    let Some(path) = path else { return Ok(RegistryRules::default()) };
    let read: RegistryConfiguration = super::read(path)?;
    Ok(RegistryRules {
        mirrors: read
            .mirrors
            .into_iter()
            .map(|mirror| Mirror {
                prefix: mirror.prefix,
                endpoints: mirror.endpoints,
                fall_back: mirror.fall_back,
            })
            .collect(),
        plain_http: read.plain_http,
        tls: BTreeSet::new(),
        authorities: read.ca_files,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_file_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registries.yaml");
        std::fs::write(
            &path,
            "mirrors:\n- prefix: registry.k8s.io\n  endpoints: [http://10.0.0.2:5000]\n\
             plainHTTP: [\"10.0.0.2:5000\"]\ncaFiles: [/etc/ca.pem]\n",
        )
        .unwrap();
        let rules = rules(Some(&path)).unwrap();
        assert!(rules.mirrors[0].fall_back);
        assert!(rules.plain_http.contains("10.0.0.2:5000"));
        assert_eq!(rules.authorities, [PathBuf::from("/etc/ca.pem")]);
    }

    #[test]
    fn a_misspelt_field_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registries.yaml");
        std::fs::write(&path, "mirors: []\n").unwrap();
        let error = rules(Some(&path)).unwrap_err().to_string();
        assert!(error.contains("mirors"), "{error}");
    }
}
