//! Whose certificates are believed: what the node's system believes.
//!
//! A sandbox opens no file. So the zygote reads the system's bundle before it
//! locks itself in, once for all; it is parsed by the first sandbox that needs
//! it, for itself.

use std::{
    borrow::Cow,
    env, fs, io,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::connect::ConnectError;

/// Where systems keep the bundle. Source: Go, `crypto/x509/root_linux.go`.
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A bundle larger than this is none.
const LARGEST: u64 = 8 << 20;

/// The text of the system's bundle.
static SYSTEM: OnceLock<Vec<u8>> = OnceLock::new();

/// Reads the system's bundle: the file that `SSL_CERT_FILE` names, or the first
/// that is there. To be called once, while there are files. A system without
/// any has no authorities, and guests hear so when they want to use TLS.
///
/// # Errors
///
/// If the file that was named cannot be used.
pub(crate) fn remember() -> io::Result<()> {
    let read = |path: &PathBuf| {
        if fs::metadata(path)?.len() > LARGEST {
            return Err(io::Error::other(format!("{} is too large", path.display())));
        }
        fs::read(path)
    };
    let bundle = match env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()) {
        Some(path) => read(&path.into())?,
        None => BUNDLES.iter().find_map(|path| read(&path.into()).ok()).unwrap_or_default(),
    };
    // The zygote starts once.
    let _ = SYSTEM.set(bundle);
    Ok(())
}

/// Authorities, and how TLS is spoken with those who have their word.
#[derive(Debug)]
pub(super) struct Roots {
    bundle: Cow<'static, [u8]>,
    config: OnceLock<Option<Arc<ClientConfig>>>,
}

impl Roots {
    pub(super) fn of_system() -> Self {
        Self::new(Cow::Borrowed(SYSTEM.get().map(Vec::as_slice).unwrap_or_default()))
    }

    /// Certificates in PEM.
    pub(super) fn new(bundle: Cow<'static, [u8]>) -> Self {
        Self { bundle, config: OnceLock::new() }
    }

    /// How TLS is spoken: version 1.2 and 1.3, certificates always verified.
    ///
    /// # Errors
    ///
    /// [`ConnectError::NoAuthorities`] if nobody is believed.
    pub(super) fn config(&self) -> Result<Arc<ClientConfig>, ConnectError> {
        let config = self.config.get_or_init(|| self.parse());
        config.clone().ok_or(ConnectError::NoAuthorities)
    }

    fn parse(&self) -> Option<Arc<ClientConfig>> {
        let mut store = RootCertStore::empty();
        // Bundles hold certificates that are too old for anyone; these are left
        // out, as everywhere.
        store.add_parsable_certificates(
            CertificateDer::pem_slice_iter(&self.bundle).filter_map(Result::ok),
        );
        if store.is_empty() {
            return None;
        }
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let mut config = builder
            .with_safe_default_protocol_versions()
            .ok()?
            .with_root_certificates(store)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Some(Arc::new(config))
    }
}
