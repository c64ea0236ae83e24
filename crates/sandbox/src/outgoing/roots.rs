//! Whose certificates are believed: what the node's system believes, unless a
//! container says otherwise ([`own`](super::own)).
//!
//! A sandbox opens no file of the node. So the zygote reads the system's bundle
//! before it locks itself in, once for all; it is parsed by the first sandbox
//! that needs it, for itself.

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

/// Bytes of certificates; a bundle larger than this is none.
pub(super) const LARGEST: u64 = 8 << 20;

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
            return Err(io::Error::other(format!("it has more than {LARGEST} bytes")));
        }
        fs::read(path)
    };
    let bundle = match env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()) {
        Some(path) => {
            let path = PathBuf::from(path);
            let named = |error: io::Error| {
                let what = format!("SSL_CERT_FILE names {}: {error}", path.display());
                io::Error::new(error.kind(), what)
            };
            read(&path).map_err(named)?
        }
        None => BUNDLES.iter().find_map(|path| read(&path.into()).ok()).unwrap_or_default(),
    };
    // The zygote starts once.
    let _ = SYSTEM.set(bundle);
    Ok(())
}

/// Has the system believe this, for all tests of this process.
#[cfg(test)]
pub(super) fn remember_this(bundle: &str) {
    SYSTEM.set(bundle.as_bytes().to_vec()).expect("one test says what the system believes");
}

/// Authorities, and how TLS is spoken with those who have their word.
#[derive(Debug)]
pub(super) struct Roots {
    bundle: Cow<'static, [u8]>,
    config: OnceLock<Option<Arc<ClientConfig>>>,
}

impl Roots {
    pub(super) fn of_system() -> Self {
        Self::new(Cow::Borrowed(system()))
    }

    /// Those of a store; none if it is empty.
    pub(super) fn of(store: RootCertStore) -> Option<Self> {
        let config = OnceLock::from(Some(config(store)?));
        Some(Self { bundle: Cow::Borrowed(b""), config })
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
        add(&mut store, &self.bundle);
        config(store)
    }
}

/// Adds the certificates of a text in PEM; how many there were.
pub(super) fn add(store: &mut RootCertStore, text: &[u8]) -> usize {
    // Bundles hold certificates that are too old for anyone; these are left
    // out, as everywhere.
    let certificates = CertificateDer::pem_slice_iter(text).filter_map(Result::ok);
    store.add_parsable_certificates(certificates).0
}

/// Adds those of the system.
pub(super) fn add_system(store: &mut RootCertStore) {
    add(store, system());
}

fn system() -> &'static [u8] {
    SYSTEM.get().map(Vec::as_slice).unwrap_or_default()
}

/// None if nobody is believed.
fn config(store: RootCertStore) -> Option<Arc<ClientConfig>> {
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
