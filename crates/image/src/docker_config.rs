//! Docker's configuration file as a source of credentials, with its helpers.
//!
//! Read anew for each pull, so that `docker login` and `docker logout` take effect
//! at once. What the credentials mean is [`crate::credential`]'s matter.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::credential::{Credential, CredentialError, Login};

/// Largest configuration file read, in bytes: a Secret's limit, and far above any real file.
const FILE_LIMIT: u64 = 1 << 20;

/// Largest answer read from a helper, in bytes: a token or password and a name.
const ANSWER_LIMIT: u64 = 64 << 10;

/// Time a helper gets. It may open a key store or ask a cloud's identity service.
const HELPER_LIMIT: Duration = Duration::from_secs(30);

/// Why the Docker configuration could not be used.
#[derive(Clone, Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum DockerConfigError {
    #[error("cannot read the Docker configuration {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },
    #[error("the Docker configuration {} is not usable", path.display())]
    Parse {
        path: PathBuf,
        #[source]
        source: CredentialError,
    },
    #[error("the credential helper docker-credential-{helper} failed: {what}")]
    Helper { helper: String, what: String },
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Helpers {
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// The credentials that the file at `path` has for `registry`. A missing file has none.
///
/// # Errors
///
/// [`DockerConfigError`] if the file cannot be read, or its helper for this registry fails.
pub(crate) async fn credentials(
    path: &Path,
    registry: &str,
) -> Result<Vec<Credential>, DockerConfigError> {
    let bytes = match read(path).await {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(DockerConfigError::Read {
                path: path.to_owned(),
                source: Arc::new(source),
            });
        }
    };
    let unusable = |source| DockerConfigError::Parse { path: path.to_owned(), source };
    let mut credentials = Credential::from_docker_config_json(&bytes).map_err(unusable)?;
    let helpers: Helpers = serde_json::from_slice(&bytes).map_err(|error| {
        unusable(CredentialError::Json { line: error.line(), column: error.column() })
    })?;
    if let Some((helper, server)) = helper_for(&helpers, registry)
        && let Some(credential) = ask(helper, &server, registry).await?
    {
        credentials.insert(0, credential);
    }
    Ok(credentials)
}

async fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = tokio::fs::File::open(path).await?;
    let mut bytes = Vec::new();
    file.take(FILE_LIMIT + 1).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 > FILE_LIMIT {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
    }
    Ok(bytes)
}

/// The helper for a registry and the name it knows the registry by.
fn helper_for<'a>(helpers: &'a Helpers, registry: &str) -> Option<(&'a str, String)> {
    // Docker Hub is stored under its first address.
    let server = match registry {
        "docker.io" => "https://index.docker.io/v1/".to_owned(),
        other => other.to_owned(),
    };
    let helper = helpers.cred_helpers.get(registry).or_else(|| helpers.cred_helpers.get(&server));
    let helper = helper.or(helpers.creds_store.as_ref())?;
    Some((helper, server))
}

/// Asks `docker-credential-<helper> get`. None if it holds nothing for the server.
///
/// Source of the protocol: `docker/docker-credential-helpers`, `client` and `credentials`.
async fn ask(
    helper: &str,
    server: &str,
    registry: &str,
) -> Result<Option<Credential>, DockerConfigError> {
    let failed =
        |what: &str| DockerConfigError::Helper { helper: helper.to_owned(), what: what.to_owned() };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if helper.is_empty() || !helper.bytes().all(is_name) {
        return Err(failed("its name is not a plain program name"));
    }
    let mut child = tokio::process::Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(&error.to_string()))?;
    let exchange = async {
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(server.as_bytes()).await?;
        }
        let mut answer = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(ANSWER_LIMIT).read_to_end(&mut answer).await?;
        }
        Ok::<_, io::Error>((answer, child.wait().await?))
    };
    let (answer, status) = tokio::time::timeout(HELPER_LIMIT, exchange)
        .await
        .map_err(|_| failed("it did not answer in time"))?
        .map_err(|error| failed(&error.to_string()))?;
    if !status.success() {
        // The one failure that is an answer, told on standard output in these words.
        return if String::from_utf8_lossy(&answer).contains("credentials not found") {
            Ok(None)
        } else {
            Err(failed(&status.to_string()))
        };
    }
    let answer: HelperAnswer =
        serde_json::from_slice(&answer).map_err(|_| failed("its answer is not understood"))?;
    // A helper marks a refresh token by this name.
    let login = if answer.username == "<token>" {
        Login::Identity(answer.secret)
    } else {
        Login::Basic { username: answer.username, password: answer.secret }
    };
    Credential::new(registry, login).map(Some).map_err(|error| failed(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_file_has_no_credentials() {
        let directory = tempfile::tempdir().unwrap();
        let found = credentials(&directory.path().join("config.json"), "h.io").await.unwrap();
        assert!(found.is_empty());
    }

    #[tokio::test]
    async fn a_helper_that_does_not_exist_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, r#"{"credHelpers":{"h.io":"absent-here"}}"#).unwrap();
        let error = credentials(&path, "h.io").await.unwrap_err();
        assert!(error.to_string().contains("docker-credential-absent-here"), "{error}");
        assert!(credentials(&path, "other.io").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_helper_with_a_path_in_its_name_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, r#"{"credsStore":"/../../bin/sh"}"#).unwrap();
        let error = credentials(&path, "h.io").await.unwrap_err();
        assert!(error.to_string().contains("plain program name"), "{error}");
    }
}
