//! Why a request failed, in the words of `wasi:http/types.error-code`.

use std::{error::Error, io, iter::successors};

use hyper_util::client::legacy;
use krustlet_resolver::LookupError;
use wasmtime_wasi_http::Error as HttpError;

use super::connect::ConnectError;
use crate::net::NetError;

/// How a request was lost with its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// The server has not begun with it.
    Unheard,
    /// There was no answer, but the server may have begun.
    Unanswered,
}

/// Whether a server has surely not begun with a request: it refused the stream (RFC
/// 9113, 8.7), or it leaves and has begun with earlier ones alone (6.8).
fn is_refused(error: &h2::Error) -> bool {
    let is_refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
    error.is_remote() && (error.is_go_away() || is_refused)
}

/// Whether a request got no answer for want of a connection, and not for what it is.
pub(super) fn loss(failure: &legacy::Error) -> Option<Lost> {
    if failure.is_connect() {
        return None;
    }
    let mut causes = successors(failure.source(), |&error| error.source());
    let error = causes.find_map(|cause| cause.downcast_ref::<hyper::Error>())?;
    let said = error.source().and_then(|cause| cause.downcast_ref::<h2::Error>());
    // What is cancelled was not written.
    if error.is_canceled() || said.is_some_and(is_refused) {
        return Some(Lost::Unheard);
    }
    let is_lost = matches!(
        of_hyper(error),
        HttpError::ConnectionTerminated | HttpError::HttpResponseIncomplete
    );
    is_lost.then_some(Lost::Unanswered)
}

/// Why the client failed: the first cause that says something.
pub(super) fn of_client(failure: &legacy::Error) -> HttpError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(failure);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<ConnectError>() {
            return of_connecting(error);
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            return of_hyper(error);
        }
        cause = error.source();
    }
    HttpError::InternalError(Some(failure.to_string()))
}

/// Why a connection failed that was there.
pub(super) fn of_hyper(error: &hyper::Error) -> HttpError {
    if error.is_timeout() {
        return HttpError::HttpResponseTimeout;
    }
    if error.is_parse_too_large() {
        return HttpError::HttpResponseHeaderSectionSize(None);
    }
    if error.is_incomplete_message() {
        return HttpError::HttpResponseIncomplete;
    }
    // Lost while it was written to or read from.
    let mut cause = error.source();
    while let Some(source) = cause {
        if source.is::<io::Error>() {
            return HttpError::ConnectionTerminated;
        }
        cause = source.source();
    }
    if error.is_canceled() || error.is_closed() {
        return HttpError::ConnectionTerminated;
    }
    HttpError::HttpProtocolError
}

fn of_connecting(error: &ConnectError) -> HttpError {
    match error {
        ConnectError::NoHost | ConnectError::NoPort => HttpError::HttpRequestUriInvalid,
        ConnectError::Lookup(error) => of_lookup(error),
        ConnectError::Net(error) => of_net(*error),
        ConnectError::Timeout => HttpError::ConnectionTimeout,
        ConnectError::NoAuthorities => HttpError::ConfigurationError,
        ConnectError::Tls(error) => of_tls(error),
        ConnectError::Gone => HttpError::ConnectionTerminated,
    }
}

fn of_lookup(error: &LookupError) -> HttpError {
    let code = |code: &str| HttpError::DnsError { rcode: Some(code.to_owned()), info_code: None };
    match error {
        LookupError::Invalid => HttpError::HttpRequestUriInvalid,
        LookupError::NotFound => code("NXDOMAIN"),
        LookupError::Silence => HttpError::DnsTimeout,
        LookupError::Failed { code: said } => code(said),
        LookupError::NoServers => HttpError::ConfigurationError,
        LookupError::Busy => HttpError::ConnectionLimitReached,
        LookupError::Denied => HttpError::HttpRequestDenied,
    }
}

fn of_net(error: NetError) -> HttpError {
    match error {
        NetError::AccessDenied => HttpError::DestinationIpProhibited,
        NetError::RemoteUnreachable | NetError::AddressNotBindable => {
            HttpError::DestinationIpUnroutable
        }
        NetError::ConnectionRefused => HttpError::ConnectionRefused,
        NetError::Timeout => HttpError::ConnectionTimeout,
        NetError::NewSocketLimit | NetError::AddressInUse => HttpError::ConnectionLimitReached,
        NetError::ConnectionReset | NetError::ConnectionAborted | NetError::ConnectionBroken => {
            HttpError::ConnectionTerminated
        }
        NetError::NotSupported
        | NetError::InvalidArgument
        | NetError::OutOfMemory
        | NetError::InvalidState
        | NetError::DatagramTooLarge
        | NetError::WouldBlock
        | NetError::Unknown => HttpError::InternalError(Some(error.to_string())),
    }
}

fn of_tls(error: &io::Error) -> HttpError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            HttpError::TlsCertificateError
        }
        Some(rustls::Error::AlertReceived(alert)) => HttpError::TlsAlertReceived {
            alert_id: Some(u8::from(*alert)),
            alert_message: alert.as_str().map(ToOwned::to_owned),
        },
        Some(_) => HttpError::TlsProtocolError,
        None => HttpError::ConnectionTerminated,
    }
}
