//! The servers: a task for each connection, as most programs have it.

use std::{convert::Infallible, net::SocketAddr};

use bytes::Bytes;
use http::{Response, header};
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::Failure;

/// The most that is read or written at once, in bytes; as in `guests/net`.
const PIECE: usize = 64 << 10;

/// What a server does with its connections.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Role {
    Echo,
    Sink,
    Source,
}

#[tokio::main]
pub(crate) async fn http(at: SocketAddr) -> Result<(), Failure> {
    let listener = TcpListener::bind(at).await?;
    let failed = accept(&listener, |connection| async {
        let service = service_fn(|_| async {
            let mut response = Response::new(Full::new(Bytes::from("Hello from WebAssembly!\n")));
            let plain = header::HeaderValue::from_static("text/plain");
            response.headers_mut().insert(header::CONTENT_TYPE, plain);
            Ok::<_, Infallible>(response)
        });
        // An error is the client's: it has gone.
        let _ = http1::Builder::new().serve_connection(TokioIo::new(connection), service).await;
    });
    Err(failed.await)
}

#[tokio::main]
pub(crate) async fn tcp(at: SocketAddr, role: Role) -> Result<(), Failure> {
    let listener = TcpListener::bind(at).await?;
    let failed = accept(&listener, |connection| async move {
        // An error is the client's: it has gone.
        let _ = serve(connection, role).await;
    });
    Err(failed.await)
}

/// Serves every connection; returns why no more could be accepted.
async fn accept<F>(listener: &TcpListener, serve: impl Fn(TcpStream) -> F) -> Failure
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // Both may be dropped and asked again.
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((connection, _)) => {
                    if let Err(error) = connection.set_nodelay(true) {
                        return error.into();
                    }
                    connections.spawn(serve(connection));
                }
                Err(error) => return error.into(),
            },
        }
    }
}

async fn serve(mut connection: TcpStream, role: Role) -> std::io::Result<()> {
    match role {
        Role::Echo => {
            let mut bytes = vec![0; 4096];
            loop {
                match connection.read(&mut bytes).await? {
                    0 => return connection.shutdown().await,
                    count => connection.write_all(&bytes[..count]).await?,
                }
            }
        }
        Role::Sink => {
            let mut bytes = vec![0; PIECE];
            while connection.read(&mut bytes).await? > 0 {}
            Ok(())
        }
        Role::Source => {
            let bytes = vec![b'.'; PIECE];
            loop {
                connection.write_all(&bytes).await?;
            }
        }
    }
}
