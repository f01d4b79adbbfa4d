//! What a client is told when an exchange has failed, by the error that Pingora has for it.

use std::time::Instant;

use pingora::{Error, ErrorSource, ErrorType};

use crate::attempt::is_connect_failure;
use crate::messages;
use crate::responses::Response;

/// The answer to an error that nobody has passed judgement on yet; none for a client that has gone.
pub fn response(error: &Error) -> Option<Response> {
    match (error.esource(), error.etype()) {
        (ErrorSource::Downstream, kind) => client_error(kind),
        (_, kind) if is_connect_failure(kind) => {
            Some(Response::unavailable(messages::service_not_in_reach()))
        }
        (_, ErrorType::ReadTimedout | ErrorType::WriteTimedout) => {
            Some(Response::upstream_too_slow())
        }
        (ErrorSource::Upstream, _) => Some(Response::bad_gateway()),
        _ => Some(Response::internal()),
    }
}

/// The answer when an exchange has ended on the client's side; none for a client that has gone.
/// `deadline` is when the exchange must be over, `body_done` whether the request has been read whole.
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
    // The stream has ended it, whoever it waited for: also a client that does not take its answer.
    let is_writing = matches!(error.etype(), ErrorType::WriteError | ErrorType::WriteTimedout);
    Some(if body_done && !is_writing {
        Response::upstream_too_slow()
    } else {
        Response::client_too_slow()
    })
}

/// What a client is told of an error of its own; nothing when it has gone.
fn client_error(kind: &ErrorType) -> Option<Response> {
    match kind {
        ErrorType::ReadTimedout => Some(Response::client_too_slow()),
        ErrorType::ReadError
        | ErrorType::WriteError
        | ErrorType::WriteTimedout
        | ErrorType::ConnectionClosed => None,
        _ => Some(Response::malformed(messages::unreadable_body())),
    }
}
