//! The responses to failed exchanges, by Pingora's error.

use std::time::Instant;

use pingora::proxy::Session;
use pingora::{Error, ErrorSource, ErrorType};

use crate::attempt::is_connect_failure;
use crate::messages;
use crate::responses::Response;
use crate::unserved::Unserved;

/// The response to an error; `None` if the client is gone.
pub fn response(error: &Error) -> Option<Response> {
    match (error.esource(), error.etype()) {
        (ErrorSource::Downstream, kind) => client_error(kind),
        (_, kind) if is_connect_failure(kind) => {
            let refusal = Response::unavailable(messages::service_unreachable());
            Some(refusal.because(Unserved::Unreachable))
        }
        (_, ErrorType::ReadTimedout | ErrorType::WriteTimedout) => {
            Some(Response::upstream_too_slow())
        }
        (ErrorSource::Upstream, _) => Some(Response::bad_gateway()),
        _ => Some(Response::internal()),
    }
}

/// The response when an exchange ended on the client's side; `None` if the client is gone. `deadline`
/// is the exchange's, and `body_done` says whether the whole request was read.
pub fn ended_downstream(
    error: &Error,
    deadline: Option<Instant>,
    body_done: bool,
) -> Option<Response> {
    if *error.esource() != ErrorSource::Downstream {
        return None;
    }
    if deadline.is_none_or(|deadline| Instant::now() < deadline) {
        return client_error(error.etype());
    }
    // The stream ended it at the deadline, also when a client did not read its response.
    let is_writing = matches!(error.etype(), ErrorType::WriteError | ErrorType::WriteTimedout);
    Some(if body_done && !is_writing {
        Response::upstream_too_slow()
    } else {
        Response::client_too_slow()
    })
}

/// The response when an instance gave up on a body of HTTP/2 that its client did not send: Pingora has no
/// time-out of its own for it. `None` for everything else.
pub fn stalled_body(error: &Error, session: &mut Session) -> Option<Response> {
    let is_timeout =
        *error.esource() == ErrorSource::Upstream && *error.etype() == ErrorType::ReadTimedout;
    (is_timeout && session.is_http2() && !session.is_body_done()).then(Response::client_too_slow)
}

/// The response to a client's own error; `None` if it is gone.
fn client_error(kind: &ErrorType) -> Option<Response> {
    match kind {
        ErrorType::ReadTimedout => Some(Response::client_too_slow()),
        ErrorType::ReadError
        | ErrorType::WriteError
        | ErrorType::WriteTimedout
        // An HTTP/2 client has reset the request.
        | ErrorType::H2Error
        | ErrorType::ConnectionClosed => None,
        _ => Some(Response::malformed(messages::unreadable_body())),
    }
}
