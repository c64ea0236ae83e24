//! A connection from the agent to a port of a pod's loopback, as a kubelet's
//! port-forward makes it. What goes in and what comes out are two pipes, so that
//! each ends on its own and one that nobody reads is noticed.

use std::{
    net::Shutdown,
    os::fd::OwnedFd,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use tokio::io::copy;

use crate::{
    net::{Connection, NetError, Stack, Stream},
    news::{News, RequestId, Teller},
    pipe::{Input, Output, Pipe},
};

/// See the module.
pub(crate) struct Visit {
    pub(crate) answer: Answer,
    pub(crate) stack: Stack,
    pub(crate) port: u16,
    /// What is sent to the pod.
    pub(crate) input: OwnedFd,
    /// What the pod sends.
    pub(crate) output: OwnedFd,
}

/// The answer to a request for a visit, which is given once: a second one would end
/// the agent's connection. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    request: RequestId,
    is_given: Arc<AtomicBool>,
}

impl Answer {
    pub(crate) fn to(request: RequestId) -> Self {
        Self { request, is_given: Arc::default() }
    }

    /// Says that the connection is made, or why it is not, unless something was said
    /// before.
    pub(crate) fn give(&self, teller: &Teller, made: Result<(), String>) {
        if !self.is_given.swap(true, Relaxed) {
            teller.tell(News::Visited { request: self.request, made });
        }
    }
}

impl Visit {
    /// Connects, says so, and carries bytes until both directions have ended or
    /// nobody reads what comes out: the agent, or the client behind it.
    pub(crate) async fn run(self, teller: Teller) {
        let Self { answer, stack, port, input, output } = self;
        let pipes = Pipe::open(input).and_then(|input| Ok((Input(input), Pipe::open(output)?)));
        let (input, output) = match pipes {
            Ok(pipes) => pipes,
            Err(error) => {
                return answer.give(&teller, Err(format!("cannot use the streams: {error}")));
            }
        };
        let made = tokio::select! {
            biased;
            // Whoever asked has given up, as after the agent's own limit.
            () = output.unread() => return,
            // It may be dropped: nobody has seen the connection.
            made = connect(&stack, port) => made,
        };
        match made {
            Ok((connection, _place)) => {
                answer.give(&teller, Ok(()));
                carry(Arc::new(connection), input, output).await;
            }
            Err(error) => {
                let why = format!("cannot connect to port {port} of the pod's loopback: {error}");
                answer.give(&teller, Err(why));
            }
        }
    }
}

/// A connection, and what keeps its place among the visits of its pod.
async fn connect(
    stack: &Stack,
    port: u16,
) -> Result<(Connection, tokio::sync::OwnedSemaphorePermit), NetError> {
    let place = stack.visit_place().ok_or(NetError::NewSocketLimit)?;
    Ok((stack.visit(port).await?, place))
}

async fn carry(connection: Arc<Connection>, mut input: Input, output: Pipe) {
    let mut to_pod = Stream(Arc::clone(&connection));
    let mut from_pod = Stream(Arc::clone(&connection));
    let inward = async {
        // It fails where the guest is gone, which the other direction hears too.
        let _ = copy(&mut input, &mut to_pod).await;
        connection.shutdown(Shutdown::Write);
    };
    // Whether anybody is there to read it.
    let outward = async move {
        let mut written = Output(&output);
        tokio::select! {
            biased;
            // Both may be dropped: what was read then is wanted by nobody.
            () = output.unread() => false,
            _ = copy(&mut from_pod, &mut written) => true,
        }
    };
    let mut inward = pin!(inward);
    let mut outward = pin!(outward);
    let (mut all_in, mut all_out) = (false, false);
    while !(all_in && all_out) {
        tokio::select! {
            biased;
            // Both are polled by reference.
            is_read = &mut outward, if !all_out => {
                if !is_read {
                    return;
                }
                all_out = true;
            }
            () = &mut inward, if !all_in => all_in = true,
        }
    }
}
