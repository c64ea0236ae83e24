//! Registry credentials: reading them from pull secrets and Docker's files,
//! and choosing those that apply to an image.
//!
//! Pure but for [`crate::docker_config`], which reads the file and asks helpers.
//!
//! Source: the kubelet's keyring, `pkg/credentialprovider/keyring.go` and
//! `config.go`. One difference: a path in a key matches whole path parts, so that a
//! credential for `host/team` is never sent for `host/teams`.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use crate::access::{Right, SecretRight, SecretSource};
use crate::digest::{Algorithm, Hasher};

/// Standard alphabet; files written by hand often lack the padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A login and the registries (or parts of one) it is for.
///
/// Its `Debug` text shows no secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Credential {
    scope: Scope,
    login: Login,
    /// None for the node's own.
    source: Option<SecretSource>,
}

/// What is shown to a registry.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Login {
    /// User name and password.
    Basic { username: String, password: String },
    /// A refresh token, exchanged for an access token.
    Identity(String),
    /// An access token, sent as it is.
    Registry(String),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Basic { username, .. } => write!(f, "Basic({username:?}, …)"),
            Self::Identity(_) => f.write_str("Identity(…)"),
            Self::Registry(_) => f.write_str("Registry(…)"),
        }
    }
}

/// Why credentials could not be read. No message repeats a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum CredentialError {
    #[error("not a Docker configuration: wrong JSON at line {line}, column {column}")]
    Json { line: usize, column: usize },
    #[error("the entry for {key:?} has an `auth` that is not base64 of user:password")]
    Auth { key: String },
    #[error("the entry for {key:?} names no registry")]
    Key { key: String },
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default, alias = "identityToken")]
    identitytoken: Option<String>,
    #[serde(default, alias = "registryToken")]
    registrytoken: Option<String>,
}

#[derive(Deserialize)]
struct ConfigJson {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

impl Credential {
    /// A user name and password for `registry` (`host[:port][/path]`).
    ///
    /// # Errors
    ///
    /// [`CredentialError::Key`] if `registry` names no host.
    pub fn basic(
        registry: &str,
        username: impl Into<String>,
        password: impl Into<String>,
    ) -> Result<Self, CredentialError> {
        Self::new(registry, Login::Basic { username: username.into(), password: password.into() })
    }

    pub(crate) fn new(key: &str, login: Login) -> Result<Self, CredentialError> {
        let scope =
            Scope::parse(key).ok_or_else(|| CredentialError::Key { key: key.to_owned() })?;
        Ok(Self { scope, login, source: None })
    }

    /// Says which Secret the login was read from: what it pulls is then for those who have it, and not
    /// for every pod of the node.
    #[must_use]
    pub fn of_secret(self, source: SecretSource) -> Self {
        Self { source: Some(source), ..self }
    }

    /// Reads `.dockerconfigjson`, the content of a `kubernetes.io/dockerconfigjson`
    /// secret and of `~/.docker/config.json`. Entries without a login (their helper
    /// holds it) are left out.
    ///
    /// # Errors
    ///
    /// [`CredentialError`], naming the entry at fault.
    pub fn from_docker_config_json(bytes: &[u8]) -> Result<Vec<Self>, CredentialError> {
        let config: ConfigJson = parse(bytes)?;
        from_entries(config.auths)
    }

    /// Reads `.dockercfg`, the content of a `kubernetes.io/dockercfg` secret.
    ///
    /// # Errors
    ///
    /// [`CredentialError`], naming the entry at fault.
    pub fn from_dockercfg(bytes: &[u8]) -> Result<Vec<Self>, CredentialError> {
        from_entries(parse(bytes)?)
    }

    pub(crate) fn login(&self) -> &Login {
        &self.login
    }

    /// What a registry that takes this login proves of an image.
    pub(crate) fn right(&self) -> Right {
        self.secret_right().map_or(Right::NodePods, Right::Secret)
    }

    /// The Secret with this login; none for the node's own.
    pub(crate) fn secret_right(&self) -> Option<SecretRight> {
        let source = self.source.clone()?;
        Some(SecretRight { source, credential_hash: self.login.hash() })
    }
}

impl Login {
    /// SHA-256 of its kind and parts, each behind its length, in hexadecimal digits. Which registry it is
    /// for plays no part: the same login in two Secrets is the same.
    fn hash(&self) -> String {
        let (kind, parts): (&[u8], [&str; 2]) = match self {
            Self::Basic { username, password } => (b"basic", [username, password]),
            Self::Identity(token) => (b"identity", [token, ""]),
            Self::Registry(token) => (b"registry", [token, ""]),
        };
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(kind);
        for part in parts {
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finish().hex().to_owned()
    }
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, CredentialError> {
    // The parser's own message may quote the text, and the text is a secret.
    serde_json::from_slice(bytes)
        .map_err(|error| CredentialError::Json { line: error.line(), column: error.column() })
}

fn from_entries(entries: BTreeMap<String, Entry>) -> Result<Vec<Credential>, CredentialError> {
    let mut credentials = Vec::new();
    for (key, entry) in entries {
        if let Some(login) = login_of(&key, entry)? {
            credentials.push(Credential::new(&key, login)?);
        }
    }
    Ok(credentials)
}

fn login_of(key: &str, entry: Entry) -> Result<Option<Login>, CredentialError> {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    if let Some(token) = given(entry.identitytoken) {
        return Ok(Some(Login::Identity(token)));
    }
    if let Some(token) = given(entry.registrytoken) {
        return Ok(Some(Login::Registry(token)));
    }
    if let Some(auth) = given(entry.auth) {
        let bad = || CredentialError::Auth { key: key.to_owned() };
        let text = BASE64.decode(auth.trim()).map_err(|_| bad())?;
        let text = String::from_utf8(text).map_err(|_| bad())?;
        let (username, password) = text.split_once(':').ok_or_else(bad)?;
        // Docker once padded the text with NUL characters.
        let password = password.trim_end_matches('\0');
        return Ok(Some(Login::Basic {
            username: username.to_owned(),
            password: password.to_owned(),
        }));
    }
    Ok(match (given(entry.username), given(entry.password)) {
        (Some(username), Some(password)) => Some(Login::Basic { username, password }),
        _ => None,
    })
}

/// `host[:port][/path]`, where the host's labels may hold `*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Scope {
    host: String,
    port: Option<String>,
    path: Vec<String>,
}

impl Scope {
    /// Reads a key of `auths`. Docker writes whole addresses, such as
    /// `https://index.docker.io/v1/`.
    fn parse(key: &str) -> Option<Self> {
        let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
        let rest = rest.unwrap_or(key).trim_end_matches('/');
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = split_port(host);
        let path = match path {
            "v1" | "v2" => "",
            path => path.strip_prefix("v1/").or_else(|| path.strip_prefix("v2/")).unwrap_or(path),
        };
        if host.is_empty() {
            return None;
        }
        Some(Self {
            host: canonical_host(host),
            port: port.map(str::to_owned),
            path: path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect(),
        })
    }

    fn matches(&self, registry: &str, repository: &str) -> bool {
        let (host, port) = split_port(registry);
        let host = canonical_host(host);
        let mut parts = repository.split('/');
        self.port.as_deref() == port
            && self.host.split('.').count() == host.split('.').count()
            && self
                .host
                .split('.')
                .zip(host.split('.'))
                .all(|(glob, label)| label_matches(glob, label))
            && self.path.iter().all(|part| parts.next() == Some(part))
    }
}

fn split_port(registry: &str) -> (&str, Option<&str>) {
    match registry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (registry, None),
    }
}

fn canonical_host(host: &str) -> String {
    match host.to_ascii_lowercase().as_str() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        host => host.to_owned(),
    }
}

/// Whether one label of a host matches; `*` stands for any number of characters.
fn label_matches(glob: &str, label: &str) -> bool {
    match glob.split_once('*') {
        None => glob == label,
        Some((before, after)) => label.strip_prefix(before).is_some_and(|rest| {
            rest.char_indices()
                .map(|(at, _)| at)
                .chain([rest.len()])
                .any(|at| label_matches(after, &rest[at..]))
        }),
    }
}

/// The credentials for a repository, the most particular first; among equals the
/// given order stands.
pub(crate) fn matching<'a>(
    credentials: &'a [Credential],
    registry: &str,
    repository: &str,
) -> Vec<&'a Credential> {
    let mut found: Vec<_> =
        credentials.iter().filter(|one| one.scope.matches(registry, repository)).collect();
    found.sort_by_key(|one| {
        let Scope { host, path, port: _ } = &one.scope;
        (std::cmp::Reverse(path.len()), host.contains('*'), std::cmp::Reverse(host.len()))
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(credentials: &[Credential], registry: &str, repository: &str) -> Vec<String> {
        matching(credentials, registry, repository)
            .into_iter()
            .map(|one| match one.login() {
                Login::Basic { username, .. } => username.clone(),
                Login::Identity(token) | Login::Registry(token) => token.clone(),
            })
            .collect()
    }

    fn login(key: &str, name: &str) -> Credential {
        Credential::basic(key, name, "secret").unwrap()
    }

    #[test]
    fn both_kinds_of_secret_are_read() {
        let auth = BASE64.encode("ann:pass:word");
        let text = format!(r#"{{"auths":{{"https://h.io/v1/":{{"auth":"{auth}"}}}}}}"#);
        let read = Credential::from_docker_config_json(text.as_bytes()).unwrap();
        let expected = vec![Credential::basic("h.io", "ann", "pass:word").unwrap()];
        assert_eq!(read, expected);

        let text = r#"{"h.io":{"username":"ann","password":"pass:word","email":"a@b"}}"#;
        assert_eq!(Credential::from_dockercfg(text.as_bytes()).unwrap(), expected);
    }

    #[test]
    fn tokens_come_before_passwords_and_empty_entries_are_left_out() {
        let text = r#"{"auths":{"a.io":{},"b.io":{"auth":"eDp5","identitytoken":"idt"}}}"#;
        let read = Credential::from_docker_config_json(text.as_bytes()).unwrap();
        assert_eq!(names(&read, "b.io", "x"), ["idt"]);
        assert!(names(&read, "a.io", "x").is_empty());
    }

    #[test]
    fn the_longest_match_comes_first() {
        let all = [
            login("*.example.com", "glob"),
            login("hub.example.com", "host"),
            login("hub.example.com/team", "team"),
            login("hub.example.com/team/app", "app"),
            login("hub.example.com:5000", "port"),
        ];
        assert_eq!(names(&all, "hub.example.com", "team/app"), ["app", "team", "host", "glob"]);
        assert_eq!(names(&all, "hub.example.com", "teams/app"), ["host", "glob"]);
        assert_eq!(names(&all, "hub.example.com:5000", "team/app"), ["port"]);
        assert!(names(&all, "example.com", "team/app").is_empty());
        assert!(names(&all, "a.hub.example.com", "team/app").is_empty());
    }

    #[test]
    fn docker_hub_is_known_by_all_its_names() {
        let all = [login("https://index.docker.io/v1/", "hub")];
        assert_eq!(names(&all, "docker.io", "library/nginx"), ["hub"]);
    }

    #[test]
    fn a_login_has_one_hash_whatever_secret_holds_it_and_the_nodes_own_has_no_owner() {
        let source =
            |name: &str| SecretSource { uid: "1".into(), namespace: "n".into(), name: name.into() };
        let of = |user: &str, password: &str, name: &str| {
            let login = Credential::basic("h.io", user, password).unwrap();
            login.of_secret(source(name)).secret_right().unwrap()
        };
        assert_eq!(of("ann", "x", "a").credential_hash, of("ann", "x", "b").credential_hash);
        assert_ne!(of("ann", "x", "a").source, of("ann", "x", "b").source);
        assert_ne!(of("ann", "bx", "a").credential_hash, of("annb", "x", "a").credential_hash);
        assert!(!of("ann", "hunter2", "a").credential_hash.contains("hunter2"));
        assert_eq!(Credential::basic("h.io", "ann", "x").unwrap().right(), Right::NodePods);
    }

    #[test]
    fn no_message_and_no_debug_text_shows_a_secret() {
        let text = br#"{"auths":{"h.io":{"auth":"hunter2secret"#;
        let error = Credential::from_docker_config_json(text).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        let error = Credential::from_dockercfg(br#"{"h.io":{"auth":"!hunter2"}}"#).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        let shown = format!("{:?}", Credential::basic("h.io", "ann", "hunter2").unwrap());
        assert!(shown.contains("ann") && !shown.contains("hunter2"));
    }
}
