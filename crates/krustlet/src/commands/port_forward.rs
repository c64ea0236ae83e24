//! `krustlet port-forward`.

use std::{
    convert::Infallible,
    io::{self, Write as _},
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use futures::TryStreamExt;
use http::Method;
use http_body_util::{BodyExt, StreamBody};
use krustlet_model::Chain;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::sleep,
};
use tokio_util::io::ReaderStream;

use super::{is_named, no_pod, pods};
use crate::{
    cli::PortForwardArgs,
    client::{self, Local},
    paths::Root,
};

/// Connections of one port carried at once; more wait to be accepted. A sandbox
/// takes 256 for a pod.
const CONNECTIONS: usize = 128;

/// Wait after a failed accept: descriptors are short, and others must end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A port of this machine, and the pod's that it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forward {
    /// 0 for any that is free.
    local: u16,
    pod: u16,
}

/// Why a port was not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not a port, LOCAL:PORT or :PORT")]
pub(crate) struct NoForward {
    given: String,
}

impl FromStr for Forward {
    type Err = NoForward;

    fn from_str(given: &str) -> Result<Self, NoForward> {
        let wrong = || NoForward { given: given.to_owned() };
        let (local, pod) = given.split_once(':').unwrap_or((given, given));
        let number = |text: &str| text.parse::<u16>().map_err(|_| wrong());
        let local = if local.is_empty() { 0 } else { number(local)? };
        match number(pod)? {
            0 => Err(wrong()),
            pod => Ok(Self { local, pod }),
        }
    }
}

/// Where connections go.
struct Way {
    local: Local,
    namespace: String,
    name: String,
}

/// Listens and carries until it is ended.
pub(crate) async fn run(args: PortForwardArgs) -> Result<()> {
    let local = Local::new(Root::new(args.root.root_dir).socket());
    let (namespace, name) = (args.pod.namespace, args.pod.name);
    if !pods(&local).await?.iter().any(|pod| is_named(pod, &namespace, &name)) {
        return Err(no_pod(&namespace, &name));
    }
    let way = Arc::new(Way { local, namespace, name });
    let mut listening = JoinSet::new();
    for forward in args.ports {
        for listener in listen(forward.local).await? {
            let at = listener.local_addr()?;
            writeln!(io::stdout(), "Forwarding from {at} -> {}", forward.pod)?;
            listening.spawn(serve(Arc::clone(&way), listener, forward.pod));
        }
    }
    // Each serves for ever.
    match listening.join_next().await {
        Some(Err(panic)) => Err(panic.into()),
        Some(Ok(never)) => match never {},
        None => Ok(()),
    }
}

/// Listens at this machine's loopback, of IPv6 too if it has that and the port is
/// free there.
async fn listen(port: u16) -> Result<Vec<TcpListener>> {
    let four = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .with_context(|| format!("cannot listen on port {port} of this machine"))?;
    let six = TcpListener::bind((Ipv6Addr::LOCALHOST, four.local_addr()?.port())).await;
    Ok(std::iter::once(four).chain(six).collect())
}

async fn serve(way: Arc<Way>, listener: TcpListener, port: u16) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            // Both are cancel-safe.
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(forward(Arc::clone(&way), stream, port));
                }
                // A client gone already, or no descriptors left.
                Err(_) => sleep(ACCEPT_PAUSE).await,
            },
        }
    }
}

async fn forward(way: Arc<Way>, stream: TcpStream, port: u16) {
    if let Err(error) = carry(&way, stream, port).await {
        let chain = Chain(error.as_ref()).to_string();
        // Nobody is left to be told if this fails.
        let _ = writeln!(io::stderr(), "krustlet: {chain}");
    }
}

/// Carries one connection, to the end of what the pod sends.
async fn carry(way: &Way, stream: TcpStream, port: u16) -> Result<()> {
    let path = client::path(&["connect", &way.namespace, &way.name, &port.to_string()]);
    let (from_client, mut to_client) = stream.into_split();
    let pieces = ReaderStream::new(from_client).map_ok(hyper::body::Frame::data);
    let body = StreamBody::new(pieces).boxed_unsync();
    let mut answer = way.local.send(Method::POST, &path, body).await?;
    while let Some(piece) = answer.piece().await? {
        if to_client.write_all(&piece).await.is_err() {
            // The client is gone, and the connection goes with the answer.
            return Ok(());
        }
    }
    // It fails where the client is gone.
    let _ = to_client.shutdown().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_said_as_to_kubectl() {
        let read = |text: &str| text.parse::<Forward>().map(|ports| (ports.local, ports.pod));
        assert_eq!(read("8080"), Ok((8080, 8080)));
        assert_eq!(read("8081:80"), Ok((8081, 80)));
        assert_eq!(read(":80"), Ok((0, 80)));
        for wrong in ["", "0", "80:", "80:0", "70000", "http", "1:2:3"] {
            assert_eq!(
                read(wrong).unwrap_err().to_string(),
                format!("{wrong:?} is not a port, LOCAL:PORT or :PORT")
            );
        }
    }
}
