//! Image references: `[registry/]repository[:tag][@digest]`, with Docker's defaults.
//!
//! Pure. Which host answers for a registry (mirrors, `registry-1.docker.io`) is
//! decided in [`crate::registry::rules`].
//!
//! Source of the grammar: `distribution/reference`, `regexp.go` and
//! `normalize.go`, which the kubelet uses through `ParseImageName`
//! (`pkg/util/parsers/parsers.go`).

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

/// The registry of a reference that names none.
pub const DEFAULT_REGISTRY: &str = "docker.io";

/// Longest repository name with its registry, in bytes.
///
/// Source: `distribution/reference`, `RepositoryNameTotalLengthMax`.
const NAME_LIMIT: usize = 255;

/// Longest tag, in bytes. Source: OCI distribution specification, "Pulling manifests".
const TAG_LIMIT: usize = 128;

/// What is pulled, in full: nothing is left to a default.
///
/// Its text (`Display`) is canonical: two references to the same thing compare equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum ReferenceError {
    #[error("the name is empty")]
    Empty,
    #[error("the name is longer than {NAME_LIMIT} characters")]
    TooLong,
    #[error("{registry:?} is not a registry's host name")]
    Registry { registry: String },
    #[error("the repository name must be lower case")]
    UpperCase,
    #[error("{part:?} is not a valid part of a repository name")]
    Repository { part: String },
    #[error("a repository name may not be 64 hexadecimal characters")]
    LooksLikeDigest,
    #[error("{tag:?} is not a valid tag")]
    Tag { tag: String },
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl Reference {
    /// The registry: host, with its port if one was given.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path inside the registry, such as `library/nginx`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag. None only if a digest was given and no tag.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the reference is pinned to one.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Registry and repository: what stands before `:tag` and `@digest`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// This repository's content of one digest: `repository@sha256:…`.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            tag: None,
            digest: Some(digest),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        // A colon before the last slash belongs to a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if name.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if is_hex_64(name) {
            return Err(ReferenceError::LooksLikeDigest);
        }

        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if names_a_host(first) => (first, path),
            _ => (DEFAULT_REGISTRY, name),
        };
        // The name under which Docker Hub was first known.
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        check_registry(registry)?;
        let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        check_repository(&repository)?;
        if registry.len() + 1 + repository.len() > NAME_LIMIT {
            return Err(ReferenceError::TooLong);
        }

        let tag = match tag {
            Some(tag) if is_tag(tag) => Some(tag.to_owned()),
            Some(tag) => {
                return Err(ReferenceError::Tag { tag: tag.chars().take(TAG_LIMIT).collect() });
            }
            None if digest.is_none() => Some("latest".to_owned()),
            None => None,
        };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

/// Whether the first part of a name is a host rather than a folder on Docker Hub.
fn names_a_host(first: &str) -> bool {
    first.contains(['.', ':', '['])
        || first == "localhost"
        || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn check_registry(registry: &str) -> Result<(), ReferenceError> {
    let bad = || ReferenceError::Registry { registry: registry.chars().take(64).collect() };
    let (host, port) = split_port(registry).ok_or_else(bad)?;
    if let Some(port) = port {
        // Five digits reach 65535; the number itself decides the rest.
        let is_port = (1..=5).contains(&port.len())
            && port.bytes().all(|byte| byte.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|port| port > 0);
        if !is_port {
            return Err(bad());
        }
    }
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(is_label),
    };
    if is_host { Ok(()) } else { Err(bad()) }
}

/// Splits `host:port`; an IPv6 address stands in brackets. None if that cannot be.
fn split_port(registry: &str) -> Option<(&str, Option<&str>)> {
    if let Some(end) = registry.find(']') {
        let (host, rest) = registry.split_at(end + 1);
        return match rest.strip_prefix(':') {
            Some(port) => Some((host, Some(port))),
            None if rest.is_empty() => Some((host, None)),
            None => None,
        };
    }
    match registry.split_once(':') {
        Some((host, port)) => Some((host, Some(port))),
        None => Some((registry, None)),
    }
}

fn is_label(label: &str) -> bool {
    !label.is_empty()
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn check_repository(repository: &str) -> Result<(), ReferenceError> {
    for part in repository.split('/') {
        if is_repository_part(part) {
            continue;
        }
        if part.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(ReferenceError::UpperCase);
        }
        return Err(ReferenceError::Repository { part: part.chars().take(64).collect() });
    }
    Ok(())
}

/// Lower-case letters and digits, joined by one `.`, one or two `_`, or any number of `-`.
fn is_repository_part(part: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !is_word(*first) || !is_word(*last) {
        return false;
    }
    // Between words stand separators only, each run of one allowed kind.
    bytes
        .split(|byte| is_word(*byte))
        .all(|run| matches!(run, b"" | b"." | b"_" | b"__") || run.iter().all(|byte| *byte == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= TAG_LIMIT
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
}

fn is_hex_64(name: &str) -> bool {
    name.len() == 64
        && name.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn docker_defaults_are_filled_in() {
        assert_eq!(canonical("nginx"), "docker.io/library/nginx:latest");
        assert_eq!(canonical("nginx:1.28"), "docker.io/library/nginx:1.28");
        assert_eq!(canonical("me/app"), "docker.io/me/app:latest");
        assert_eq!(canonical("index.docker.io/nginx"), "docker.io/library/nginx:latest");
        assert_eq!(canonical("localhost/app:1"), "localhost/app:1");
        assert_eq!(canonical("host:5000/app"), "host:5000/app:latest");
        assert_eq!(canonical("host:5000/a/b:2"), "host:5000/a/b:2");
        assert_eq!(canonical("[::1]:5000/app"), "[::1]:5000/app:latest");
        assert_eq!(canonical("ghcr.io/a__b/c-d--e.f"), "ghcr.io/a__b/c-d--e.f:latest");
    }

    #[test]
    fn a_digest_needs_no_tag_and_keeps_one() {
        let digest = Digest::of(b"x");
        assert_eq!(canonical(&format!("a@{digest}")), format!("docker.io/library/a@{digest}"));
        assert_eq!(canonical(&format!("a:1@{digest}")), format!("docker.io/library/a:1@{digest}"));
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = format!("h.io/{}", "a".repeat(252));
        let bad = [
            "",
            ":1",
            "@",
            "Nginx",
            "a//b",
            "a/",
            "/a",
            "a:",
            "a:b:c",
            "a b",
            "a@sha256:00",
            "a@md5:d41d8cd98f00b204e9800998ecf8427e",
            "host:port/a",
            "host:0/a",
            "host:99999/a",
            "-h.io/a",
            "h..io/a",
            "a/../b",
            "a___b",
            "a._b",
            "[zz]:1/a",
            "[::1]x/a",
            "a:-x",
            "http://h.io/a",
            "h.io/a?x",
            "ü",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            &long,
        ];
        for text in bad {
            assert!(text.parse::<Reference>().is_err(), "{text:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_the_canonical_text_reads_the_same(text in ".{0,80}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference));
            }
        }

        #[test]
        fn well_formed_references_are_read_back_as_written(
            host in "[a-z][a-z0-9]{0,8}\\.[a-z]{2,4}(:[1-9][0-9]{0,3})?",
            path in "[a-z0-9]{1,6}([._-][a-z0-9]{1,6}){0,2}(/[a-z0-9]{1,6}){0,3}",
            tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}",
            pinned in any::<bool>(),
        ) {
            // The one host that has defaults of its own.
            prop_assume!(!host.ends_with("docker.io"));
            let mut text = format!("{host}/{path}:{tag}");
            if pinned {
                text = format!("{text}@{}", Digest::of(text.as_bytes()));
            }
            let reference: Reference = text.parse().unwrap();
            prop_assert_eq!(reference.to_string(), text);
            prop_assert_eq!(reference.registry(), host);
            prop_assert_eq!(reference.repository(), path);
        }

        #[test]
        fn no_accepted_reference_can_climb_out_of_a_path(text in "[a-z./:@-]{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert!(reference.repository().split('/').all(|part| !part.starts_with('.')));
            }
        }
    }
}
