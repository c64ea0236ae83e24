//! The HTTPS listener as its clients see it: who is let in, and what they read.

#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Time};
use krustlet_model::{PodKey, PodUid};
use krustlet_server::{
    Attributes, ConnectFailure, ConnectStreams, ContainerUsage, ExecFailure, ExecRequest,
    HttpsTask, LogRun, LogSource, NetworkUsage, NotFound, PodQueries, PodUsage, ReviewFailed,
    Reviews, ServingIdentity, StopFailure, Stopped, Usage, User, tls,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use reqwest::{Client, StatusCode};
use tokio_util::sync::CancellationToken;

/// One pod `default/web` whose container `app` has a log.
#[derive(Clone, Default)]
struct OnePod {
    log: std::path::PathBuf,
    /// Who asks now what it uses, and how many did at one time.
    asked: Arc<AtomicUsize>,
    most_asked: Arc<AtomicUsize>,
}

impl PodQueries for OnePod {
    fn pods(&self) -> Vec<Arc<Pod>> {
        let mut pod = Pod::default();
        pod.metadata.name = Some("web".into());
        vec![Arc::new(pod)]
    }

    fn log(
        &self,
        pod: &PodKey,
        _: Option<&PodUid>,
        container: &str,
        _: LogRun,
    ) -> Result<LogSource, NotFound> {
        if *pod != PodKey::new("default", "web") {
            return Err(NotFound::Pod);
        }
        if container != "app" {
            let pod = "web_default".into();
            return Err(NotFound::Container { pod, container: container.into() });
        }
        Ok(LogSource { path: self.log.clone(), ended: CancellationToken::new() })
    }

    fn exec(&self, request: ExecRequest) -> BoxFuture<'static, Result<i32, ExecFailure>> {
        async move { Err(ExecFailure::NotRunning(request.pod.to_string())) }.boxed()
    }

    fn connect(
        &self,
        pod: PodKey,
        _: u16,
        _: ConnectStreams,
    ) -> BoxFuture<'static, Result<(), ConnectFailure>> {
        async move { Err(ConnectFailure::Failed(pod.to_string())) }.boxed()
    }

    fn stop(
        &self,
        _: PodKey,
        _: Option<Duration>,
    ) -> BoxFuture<'static, Result<Stopped, StopFailure>> {
        async { Ok(Stopped::Removed) }.boxed()
    }

    fn usage(&self) -> BoxFuture<'static, Usage> {
        let now = || Time("2026-11-29T12:00:00Z".parse().unwrap());
        let container = ContainerUsage {
            name: "app".into(),
            started_at: Some(now()),
            cpu_nanoseconds: 7,
            memory_bytes: 65_536,
        };
        let pod = PodUsage {
            namespace: "default".into(),
            name: "web".into(),
            uid: "u".into(),
            started_at: None,
            asked_at: now(),
            network: NetworkUsage { received_bytes: 1, sent_bytes: 2, ..NetworkUsage::default() },
            containers: vec![container],
        };
        let (asked, most) = (Arc::clone(&self.asked), Arc::clone(&self.most_asked));
        async move {
            most.fetch_max(asked.fetch_add(1, SeqCst) + 1, SeqCst);
            tokio::task::yield_now().await;
            asked.fetch_sub(1, SeqCst);
            Usage { pods: vec![pod], unknown: 0 }
        }
        .boxed()
    }
}

/// Knows the token `good` as alice; she may do anything but `pods`.
struct Table;

impl Reviews for Table {
    fn token(&self, bearer: String) -> BoxFuture<'_, Result<Option<User>, ReviewFailed>> {
        async move {
            let alice = User {
                name: "alice".into(),
                groups: Vec::new(),
                uid: None,
                extra: BTreeMap::new(),
            };
            match bearer.as_str() {
                "good" => Ok(Some(alice)),
                "broken" => Err(ReviewFailed("away".into())),
                _ => Ok(None),
            }
        }
        .boxed()
    }

    fn access(&self, user: User, wanted: Attributes) -> BoxFuture<'_, Result<bool, ReviewFailed>> {
        let allowed = match user.name.as_str() {
            "admin" => true,
            "alice" => wanted.subresource == "proxy" && wanted.verb == "get",
            "scraper" => ["metrics", "stats"].contains(&wanted.subresource),
            _ => false,
        };
        async move { Ok(allowed) }.boxed()
    }
}

struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    running: tokio::task::JoinSet<()>,
    authority: Issuer<'static, KeyPair>,
    directory: tempfile::TempDir,
    pods: OnePod,
}

impl Server {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = directory.path().join("ca.crt");
        std::fs::write(&ca, params.self_signed(&key).unwrap().pem()).unwrap();

        let log = directory.path().join("0.log");
        std::fs::write(&log, "2026-11-24T10:00:00Z stdout F hello\n").unwrap();
        let pods = OnePod { log, ..OnePod::default() };
        let server = https(directory.path(), &ca, pods.clone()).await;
        let (address, stop) = (server.address().unwrap(), CancellationToken::new());
        let mut running = tokio::task::JoinSet::new();
        running.spawn(server.run(stop.clone()));
        Self { address, stop, running, authority: Issuer::new(params, key), directory, pods }
    }

    /// A client that trusts the server whatever it shows, with a certificate
    /// for this user if one is named.
    fn client(&self, user: Option<&str>) -> Client {
        // The client asks for the process's choice; the server brings its own.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut client = Client::builder().danger_accept_invalid_certs(true);
        if let Some(user) = user {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, user);
            let signed = params.signed_by(&key, &self.authority).unwrap();
            let pem = format!("{}{}", signed.pem(), key.serialize_pem());
            client = client.identity(reqwest::Identity::from_pem(pem.as_bytes()).unwrap());
        }
        client.build().unwrap()
    }

    async fn get(&self, client: &Client, path: &str, token: Option<&str>) -> (StatusCode, String) {
        let mut request = client.get(format!("https://{}{path}", self.address));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    async fn end(mut self) {
        self.stop.cancel();
        while self.running.join_next().await.is_some() {}
        drop(self.directory);
    }
}

async fn https(directory: &Path, ca: &Path, pods: OnePod) -> HttpsTask {
    let identity = ServingIdentity::SelfSigned {
        directory: directory.to_owned(),
        node: "wasm-1".into(),
        addresses: vec![[127, 0, 0, 1].into()],
    };
    let config = tls::server_config(&identity, Some(ca)).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    HttpsTask::bind(address, config, "wasm-1", Arc::new(pods), Arc::new(Table)).await.unwrap()
}

const LOG: &str = "/containerLogs/default/web/app";

#[tokio::test]
async fn nobody_is_let_in_without_a_credential() {
    let server = Server::start().await;
    let client = server.client(None);
    for path in [LOG, "/pods", "/healthz", "/no/such/path"] {
        for token in [None, Some("bad"), Some("broken")] {
            let answer = server.get(&client, path, token).await;
            assert_eq!(answer, (StatusCode::UNAUTHORIZED, "Unauthorized".into()), "{path}");
        }
    }
    server.end().await;
}

#[tokio::test]
async fn a_certificate_of_the_cluster_reads_a_log() {
    let server = Server::start().await;
    let answer = server.get(&server.client(Some("admin")), LOG, None).await;
    assert_eq!(answer, (StatusCode::OK, "hello\n".into()));
    server.end().await;
}

#[tokio::test]
async fn a_token_reads_a_log_where_its_user_may() {
    let server = Server::start().await;
    let client = server.client(None);
    assert_eq!(server.get(&client, LOG, Some("good")).await.0, StatusCode::OK);
    // `pods` is refused, `proxy` suffices.
    assert_eq!(server.get(&client, "/pods", Some("good")).await.0, StatusCode::OK);
    server.end().await;
}

#[tokio::test]
async fn a_refusal_says_what_was_wanted() {
    let server = Server::start().await;
    let answer = server.get(&server.client(Some("mallory")), "/pods", None).await;
    let text = "Forbidden (user=mallory, verb=get, resource=nodes, subresource(s)=[pods proxy])";
    assert_eq!(answer, (StatusCode::FORBIDDEN, text.into()));
    server.end().await;
}

#[tokio::test]
async fn what_is_unknown_or_senseless_is_told_in_the_kubelets_words() {
    let server = Server::start().await;
    let client = server.client(Some("admin"));
    let cases = [
        ("/containerLogs/default/none/app", StatusCode::NOT_FOUND, "pod does not exist"),
        (
            "/containerLogs/default/web/none",
            StatusCode::NOT_FOUND,
            "container none not found in pod web_default",
        ),
        (
            "/containerLogs/default/web/app?tailLines=-1",
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid log option tailLines=\"-1\": must be a whole number",
        ),
    ];
    for (path, status, text) in cases {
        assert_eq!(server.get(&client, path, None).await, (status, text.into()), "{path}");
    }
    server.end().await;
}

#[tokio::test]
async fn reading_paths_take_no_other_method() {
    let server = Server::start().await;
    let client = server.client(Some("admin"));
    let answer = client.post(format!("https://{}/pods", server.address)).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert!(answer.headers().contains_key("allow"));
    server.end().await;
}

const MEASURED: [&str; 4] =
    ["/metrics", "/metrics/cadvisor", "/metrics/resource", "/stats/summary"];

#[tokio::test]
async fn what_pods_use_is_for_those_who_may_read_metrics_and_stats() {
    let server = Server::start().await;
    // Others' rights are no rights here.
    for path in MEASURED {
        let answer = server.get(&server.client(None), path, Some("good")).await;
        assert_eq!(answer.0, StatusCode::FORBIDDEN, "{path}: {}", answer.1);
    }
    let scraper = server.client(Some("scraper"));
    assert_eq!(server.get(&scraper, "/pods", None).await.0, StatusCode::FORBIDDEN);
    let has = async |path: &str, part: &str| {
        let (status, text) = server.get(&scraper, path, None).await;
        assert!(status == StatusCode::OK && text.contains(part), "{path}: {status} {text}");
    };
    let labels = "{namespace=\"default\",pod=\"web\"}";
    let refused = "{namespace=\"default\",pod=\"web\",rule=\"policy\"}";
    has("/metrics", &format!("krustlet_pod_network_refused_total{refused} 0\n")).await;
    let received = format!("container_network_receive_bytes_total{labels} 1 1795953600000\n");
    has("/metrics/cadvisor", &received).await;
    has("/metrics/resource", "resource_scrape_error 0\n").await;
    let (_, text) = server.get(&scraper, "/stats/summary", None).await;
    let summary: serde_json::Value = serde_json::from_str(&text).unwrap();
    let time = "2026-11-29T12:00:00Z";
    let expected = serde_json::json!({
        "node": {"nodeName": "wasm-1"},
        "pods": [{
            "podRef": {"name": "web", "namespace": "default", "uid": "u"},
            "containers": [{
                "name": "app",
                "startTime": time,
                "cpu": {"time": time, "usageCoreNanoSeconds": 7},
                "memory": {"time": time, "workingSetBytes": 65_536},
            }],
            "memory": {"time": time, "workingSetBytes": 65_536},
            "network": {"time": time, "name": "eth0", "rxBytes": 1, "txBytes": 2},
        }],
    });
    assert_eq!(summary, expected);
    server.end().await;
}

#[tokio::test]
async fn many_who_ask_what_pods_use_ask_in_turn() {
    let server = Server::start().await;
    let scraper = server.client(Some("scraper"));
    let asked = (0..20).map(|index| server.get(&scraper, MEASURED[index % 4], None));
    for (status, _) in futures::future::join_all(asked).await {
        assert_eq!(status, StatusCode::OK);
    }
    assert_eq!(server.pods.most_asked.load(SeqCst), 1);
    server.end().await;
}
