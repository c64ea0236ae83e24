//! Registries with certificates.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::{Bench, chain};

/// Starts a server that has no image, with a certificate for `name`; returns its port and
/// the authority's certificate.
async fn start(name: &str, tasks: &mut JoinSet<()>) -> (u16, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], private)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tasks.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // A client that does not trust us hangs up: that is what is tested.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let answer =
                b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
        }
    });
    (port, authority.pem())
}

#[tokio::test]
async fn a_private_authority_is_trusted_if_the_configuration_says_so() {
    let mut tasks = JoinSet::new();
    let (port, authority) = start("localhost", &mut tasks).await;
    let host = format!("localhost:{port}");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.pem");
    std::fs::write(&path, authority).unwrap();
    let bench = Bench::with(|config| {
        config.registries.tls.insert(host.clone());
        config.registries.authorities.push(path);
    });
    let error = bench.pull(&format!("{host}/a:1")).await.unwrap_err();
    assert!(chain(&error).contains("no such image"), "{}", chain(&error));
}

#[tokio::test]
async fn an_unknown_authority_and_a_certificate_for_another_host_are_refused_at_once() {
    let mut tasks = JoinSet::new();
    let (port, _) = start("localhost", &mut tasks).await;
    let host = format!("localhost:{port}");
    let bench = Bench::with(|config| {
        config.registries.tls.insert(host.clone());
    });
    let error = bench.pull(&format!("{host}/a:1")).await.unwrap_err();
    assert!(chain(&error).contains("no secure connection"), "{}", chain(&error));
    assert_eq!(error.reason(), "RegistryUnavailable");

    let (port, authority) = start("elsewhere.example", &mut tasks).await;
    let host = format!("localhost:{port}");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.pem");
    std::fs::write(&path, authority).unwrap();
    let bench = Bench::with(|config| {
        config.registries.tls.insert(host.clone());
        config.registries.authorities.push(path);
    });
    let error = bench.pull(&format!("{host}/a:1")).await.unwrap_err();
    assert!(chain(&error).contains("no secure connection"), "{}", chain(&error));
}
