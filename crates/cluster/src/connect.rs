//! Getting from a kubeconfig to a connection.
//!
//! Two HTTP/2 connections are kept: one for requests, one for watches. The API
//! server lets a connection carry 100 streams at once, and a client waits
//! without a word when they are used up; so watches, which last, must not be
//! able to hold up a status or the lease. Credentials are read once: rotation
//! is not this module's business.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http::HeaderValue;
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{
        Client as HttpClient,
        connect::{HttpConnector, dns::Name},
    },
    rt::{TokioExecutor, TokioTimer},
};
use krustlet_resolver::SystemLookups;
use kube::{
    Client, Config,
    client::{Body, ConfigExt},
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use tower::{BoxError, ServiceBuilder};

/// How long a TCP connection may take to come about.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Look-ups of the server's name at once: each request that finds no connection
/// asks for one.
const LOOKUPS: usize = 2;

/// How soon a silent connection is asked for a sign of life, and how long it may
/// take to give one: a half-open connection is noticed within 30 s.
const PING_AFTER: Duration = Duration::from_secs(15);
const PING_LIMIT: Duration = Duration::from_secs(10);

/// The connections to one API server. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    pub(crate) requests: Client,
    pub(crate) watches: Client,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

impl From<Client> for Cluster {
    /// One connection for requests and watches alike, as its owner made it.
    fn from(client: Client) -> Self {
        Self { watches: client.clone(), requests: client }
    }
}

/// How to connect.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Sent as `User-Agent`; shows in audit logs. Such as `krustlet/v0.1.0`.
    pub user_agent: String,
    /// The kubeconfig's context; its `current-context` when None.
    pub context: Option<String>,
}

/// Why a kubeconfig gives no connection. None of these mends itself.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message is the description")]
pub enum ConnectError {
    #[error("cannot read the kubeconfig {path}")]
    Kubeconfig {
        path: PathBuf,
        #[source]
        source: Box<KubeconfigError>,
    },

    #[error("the kubeconfig {path} has no usable credentials")]
    Credentials {
        path: PathBuf,
        #[source]
        source: Box<kube::Error>,
    },

    #[error("the kubeconfig {path} asks for a proxy, which is not supported")]
    Proxy { path: PathBuf },

    #[error("{name:?} in the kubeconfig {path} is not a server name")]
    ServerName { path: PathBuf, name: String },

    #[error("{user_agent:?} cannot be sent as a user agent")]
    UserAgent { user_agent: String },
}

/// Reads a kubeconfig and makes ready to talk; says nothing to the server yet.
///
/// # Errors
///
/// [`ConnectError`] names the file and what is wrong with it. A server that is
/// away is not an error here.
pub async fn connect(kubeconfig: &Path, options: ConnectOptions) -> Result<Cluster, ConnectError> {
    let unreadable =
        |source| ConnectError::Kubeconfig { path: kubeconfig.to_owned(), source: Box::new(source) };
    let file = Kubeconfig::read_from(kubeconfig).map_err(unreadable)?;
    let choice = KubeConfigOptions { context: options.context, ..KubeConfigOptions::default() };
    let config = Config::from_custom_kubeconfig(file, &choice).await.map_err(unreadable)?;
    if config.proxy_url.is_some() {
        return Err(ConnectError::Proxy { path: kubeconfig.to_owned() });
    }
    connect_with(config, &options.user_agent, kubeconfig)
}

/// Builds both connections of one configuration.
fn connect_with(
    mut config: Config,
    user_agent: &str,
    path: &Path,
) -> Result<Cluster, ConnectError> {
    let agent = HeaderValue::from_str(user_agent)
        .map_err(|_| ConnectError::UserAgent { user_agent: user_agent.to_owned() })?;
    config.headers.push((http::header::USER_AGENT, agent));
    // Another crate of the binary may bring a second provider; rustls then
    // refuses to choose. An earlier choice by the binary stands.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let lookups = SystemLookups::new(LOOKUPS);
    Ok(Cluster {
        requests: client(&config, lookups.clone(), path)?,
        watches: client(&config, lookups, path)?,
    })
}

/// One connection pool with its headers and credentials.
fn client(config: &Config, lookups: SystemLookups, path: &Path) -> Result<Client, ConnectError> {
    let unusable =
        |source| ConnectError::Credentials { path: path.to_owned(), source: Box::new(source) };

    let mut tcp = HttpConnector::new_with_resolver(tower::service_fn(move |name: Name| {
        let lookups = lookups.clone();
        async move { Ok::<_, io::Error>(lookups.look_up(name.as_str(), 0).await?.into_iter()) }
    }));
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT_LIMIT));
    // For servers that speak HTTP/1 only, which has no ping.
    tcp.set_keepalive(Some(PING_AFTER));
    tcp.set_keepalive_interval(Some(Duration::from_secs(5)));
    tcp.set_keepalive_retries(Some(2));
    tcp.set_tcp_user_timeout(Some(PING_AFTER + PING_LIMIT));

    let mut builder = HttpsConnectorBuilder::new()
        .with_tls_config(config.rustls_client_config().map_err(unusable)?)
        .https_or_http();
    if let Some(name) = &config.tls_server_name {
        let fixed = name
            .clone()
            .try_into()
            .map_err(|_| ConnectError::ServerName { path: path.to_owned(), name: name.clone() })?;
        builder = builder.with_server_name_resolver(FixedServerNameResolver::new(fixed));
    }
    let http: HttpClient<_, Body> = HttpClient::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(PING_AFTER)
        .http2_keep_alive_timeout(PING_LIMIT)
        .build(builder.enable_all_versions().wrap_connector(tcp));

    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(unusable)?)
        .layer(config.extra_headers_layer().map_err(unusable)?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace.clone()))
}
