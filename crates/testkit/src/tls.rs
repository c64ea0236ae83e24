//! Authorities that nobody else knows, and servers that have their word.

use std::{
    fmt,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ServerConfig, ServerConnection, StreamOwned, crypto::ring};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// How long a client may be silent.
const PATIENCE: Duration = Duration::from_secs(30);

/// Somebody whose word counts with those who are given its certificate.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    /// A new one.
    ///
    /// # Panics
    ///
    /// If the machine has no randomness.
    #[must_use]
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key can be made");
        let mut own = CertificateParams::new(Vec::new()).expect("no names are good names");
        own.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = own.self_signed(&key).expect("it can sign").pem();
        Self { pem, issuer: Issuer::new(own, key) }
    }

    /// Its certificate.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// How a server speaks TLS to which it gave its word, for a name or an address.
    ///
    /// # Panics
    ///
    /// If that is none.
    #[must_use]
    pub fn server(&self, name: &str) -> ServerConfig {
        let key = KeyPair::generate().expect("a key can be made");
        let own = CertificateParams::new(vec![name.to_owned()]).expect("a name or an address");
        let own = own.signed_by(&key, &self.issuer).expect("it can sign");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has both versions")
            .with_no_client_auth()
            .with_single_cert(vec![own.der().clone()], key)
            .expect("the key is the certificate's")
    }
}

/// Answers every request with this text, each on a connection of its own, until
/// the process ends.
pub fn serve_https(listener: TcpListener, tls: ServerConfig, text: &'static str) {
    let tls = Arc::new(tls);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let tls = Arc::clone(&tls);
            // Who does not like the certificate leaves.
            thread::spawn(move || answer(stream, tls, text));
        }
    });
}

fn answer(stream: TcpStream, tls: Arc<ServerConfig>, text: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let tls = ServerConnection::new(tls).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(tls, stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let length = text.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{text}"
    )?;
    stream.conn.send_close_notify();
    stream.flush()
}
