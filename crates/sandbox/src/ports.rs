//! The ports on which the sandbox itself listens for a guest: that of an http
//! guest, and those that a module finds pre-opened.

use crate::{
    container::Container,
    net::{LISTENING, Listener, MOST_BACKLOG, NetError},
};

/// Listens on a port: on all addresses of the pod and its loopback, and where
/// sockets were handed over for it; in a pod without a network of its own, only
/// there. So many connections may wait, or as many as the node lets wait.
///
/// # Errors
///
/// What people are to read.
pub(crate) fn listen(
    container: &Container,
    port: u16,
    backlog: Option<u32>,
) -> Result<Listener, String> {
    let backlog = backlog.unwrap_or(MOST_BACKLOG);
    let stack = &container.stack;
    if stack.is_up() {
        return stack.listen_everywhere(port, backlog).map_err(|(address, error)| match error {
            NetError::AddressInUse => format!(
                "port {port} of {} is in use already; choose another containerPort or stop what \
                 uses it",
                address.ip()
            ),
            NetError::NewSocketLimit => too_many(port),
            error => format!("cannot listen on {address}: {error}"),
        });
    }
    match stack.listen_handed(port, backlog) {
        Ok(Some(listener)) => Ok(listener),
        Ok(None) => Err(format!("cannot listen on port {port}: the pod has no network")),
        Err(NetError::NewSocketLimit) => Err(too_many(port)),
        Err(error) => Err(format!("cannot listen on port {port}: {error}")),
    }
}

/// The pod's own bound, or the sandbox's descriptors.
fn too_many(port: u16) -> String {
    let most = LISTENING / 2;
    format!(
        "cannot listen on port {port}: there are too many sockets; a pod's guests are listened \
         for at {most} ports at most"
    )
}

/// The port that an http guest is served on.
///
/// # Errors
///
/// What people are to read.
pub(crate) fn http_port(container: &Container) -> Result<u16, String> {
    let named = container.spec.listen_ports.first().map(|declared| declared.port);
    named
        .or_else(|| container.handed_port())
        .ok_or_else(|| "an http container needs a port, and none was named".to_owned())
}
