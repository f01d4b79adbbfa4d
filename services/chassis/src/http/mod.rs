//! HTTP for every service: the error body, extractors that reject with it, the layers around a
//! service's routes, and a server with limits and a graceful stop.

mod caller;
mod callers;
mod error;
mod extract;
pub mod fields;
mod handshakes;
mod json;
mod layers;
mod message;
pub mod messages;
mod observe;
mod operators;
mod serve;
mod shape;
#[cfg(test)]
mod tests;

pub use caller::{Caller, MemberCaller, PeerOf, ServiceCaller};
pub use callers::{ANY_PEER, ANYBODY, Admission, Callers, THIS_MACHINE};
pub use error::{ApiError, ErrorBody};
pub use extract::{Parameter, Params, Path, Segments};
pub use json::{Json, read_body};
pub use layers::{HttpLimits, admitted, observed_router, operators_router, service_router};
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub use message::check_message;
pub use message::{Language, Message};
pub use observe::TRACE_RESPONSE_HEADER;
pub use operators::guard_operators;
pub use serve::{BindError, Listener, bind, serve};
pub use shape::read_value;
