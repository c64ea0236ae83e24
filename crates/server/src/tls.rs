//! The server's own certificate, and which clients' certificates count.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

/// Where the serving certificate comes from.
#[derive(Clone, Debug)]
pub enum ServingIdentity {
    /// `tlsCertFile` and `tlsPrivateKeyFile`.
    Files {
        /// PEM, the leaf first.
        certificate: PathBuf,
        /// PEM.
        key: PathBuf,
    },
    /// Signed by itself and kept in this directory as `kubelet.crt` and
    /// `kubelet.key`, as the kubelet does without `serverTLSBootstrap`.
    SelfSigned {
        /// `--cert-dir`.
        directory: PathBuf,
        /// The node's name.
        node: String,
        /// The node's addresses.
        addresses: Vec<IpAddr>,
    },
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum TlsError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} holds no usable PEM: {why}")]
    Pem { path: PathBuf, why: String },
    #[error("cannot make a certificate")]
    Generate(#[source] rcgen::Error),
    #[error("the certificate and key do not serve")]
    Rustls(#[source] rustls::Error),
    #[error("the client CA file {path} does not serve: {why}")]
    ClientCa { path: PathBuf, why: String },
}

/// Makes the server's configuration. With a client CA, certificates signed by
/// it are verified; clients without one are let in to show a token instead.
///
/// # Errors
///
/// [`TlsError`] names the file at fault.
pub fn server_config(
    identity: &ServingIdentity,
    client_ca: Option<&Path>,
) -> Result<ServerConfig, TlsError> {
    let (certificates, key) = match identity {
        ServingIdentity::Files { certificate, key } => {
            (certificates(certificate)?, private_key(key)?)
        }
        ServingIdentity::SelfSigned { directory, node, addresses } => {
            let (certificate, key) = self_signed(directory, node, addresses)?;
            (certificates(&certificate)?, private_key(&key)?)
        }
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Rustls)?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let unusable = |why: String| TlsError::ClientCa { path: path.to_owned(), why };
            let mut roots = RootCertStore::empty();
            for certificate in self::certificates(path)? {
                roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()
                .map_err(|error| unusable(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(certificates, key).map_err(TlsError::Rustls)?;
    // Upgrades (exec, port-forward) need HTTP/1.1; the rest may use HTTP/2.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(path)?;
    let found = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| TlsError::Pem { path: path.to_owned(), why: error.to_string() })?;
    if found.is_empty() {
        return Err(TlsError::Pem { path: path.to_owned(), why: "no certificate in it".into() });
    }
    Ok(found)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&read(path)?)
        .map_err(|error| TlsError::Pem { path: path.to_owned(), why: error.to_string() })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

/// Finds or makes the pair; an existing pair is kept so that clients that
/// pinned it go on.
fn self_signed(
    directory: &Path,
    node: &str,
    addresses: &[IpAddr],
) -> Result<(PathBuf, PathBuf), TlsError> {
    let (certificate, key) = (directory.join("kubelet.crt"), directory.join("kubelet.key"));
    if certificate.exists() && key.exists() {
        return Ok((certificate, key));
    }
    let pair = KeyPair::generate().map_err(TlsError::Generate)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("{node}@krustlet"));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    if let Ok(name) = node.try_into() {
        params.subject_alt_names.push(SanType::DnsName(name));
    }
    params.subject_alt_names.extend(addresses.iter().copied().map(SanType::IpAddress));
    let signed = params.self_signed(&pair).map_err(TlsError::Generate)?;
    fs::create_dir_all(directory)
        .map_err(|source| TlsError::Write { path: directory.to_owned(), source })?;
    // The key first: a certificate whose key was lost would be found and used.
    write_private(&key, pair.serialize_pem().as_bytes())?;
    write_private(&certificate, signed.pem().as_bytes())?;
    Ok((certificate, key))
}

fn write_private(path: &Path, bytes: &[u8]) -> Result<(), TlsError> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};

    let failed = |source| TlsError::Write { path: path.to_owned(), source };
    let scratch = path.with_extension("tmp");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&scratch)
        .map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&scratch, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use rustls::{client::verify_server_name, server::ParsedCertificate};
    use rustls_pki_types::ServerName;

    use super::*;

    const ADDRESSES: [&str; 2] = ["10.88.0.1", "fd00:88::1"];

    fn identity(directory: &Path) -> ServingIdentity {
        ServingIdentity::SelfSigned {
            directory: directory.to_owned(),
            node: "wasm-1".into(),
            addresses: ADDRESSES.map(|address| address.parse().unwrap()).into(),
        }
    }

    #[test]
    fn a_certificate_made_once_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        server_config(&identity(dir.path()), None).unwrap();
        let first = fs::read(dir.path().join("kubelet.crt")).unwrap();
        server_config(&identity(dir.path()), None).unwrap();
        assert_eq!(fs::read(dir.path().join("kubelet.crt")).unwrap(), first);
    }

    #[test]
    fn a_certificate_holds_at_every_address_of_the_node() {
        let dir = tempfile::tempdir().unwrap();
        server_config(&identity(dir.path()), None).unwrap();
        let chain = certificates(&dir.path().join("kubelet.crt")).unwrap();
        let certificate = ParsedCertificate::try_from(&chain[0]).unwrap();
        let holds_for = |name: &str| {
            let name = ServerName::try_from(name).unwrap();
            verify_server_name(&certificate, &name).is_ok()
        };
        for name in ADDRESSES.into_iter().chain(["wasm-1"]) {
            assert!(holds_for(name), "{name}");
        }
        assert!(!holds_for("10.88.0.2") && !holds_for("fd00:88::2"));
    }

    #[test]
    fn the_key_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;

        let dir = tempfile::tempdir().unwrap();
        server_config(&identity(dir.path()), None).unwrap();
        let mode = fs::metadata(dir.path().join("kubelet.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_file_that_is_no_certificate_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.crt");
        fs::write(&ca, "not PEM").unwrap();
        let error = server_config(&identity(dir.path()), Some(&ca)).unwrap_err();
        assert!(error.to_string().contains("ca.crt"), "{error}");
    }
}
