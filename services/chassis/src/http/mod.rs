//! HTTP as every service serves it: the error body, the extractors that answer with it, the layers
//! around a service's routes, and a server with bounds that drains.

mod error;
mod extract;
pub mod fields;
mod json;
mod layers;
mod message;
pub mod messages;
mod observe;
mod serve;
mod shape;
#[cfg(test)]
mod tests;

pub use error::{ApiError, ErrorBody};
pub use extract::{Parameter, Params, Path, Segments};
pub use json::{Json, read_body};
pub use layers::{HttpLimits, observed_router, operators_router, service_router};
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub use message::check_message;
pub use message::{Language, Message};
pub use observe::TRACE_RESPONSE_HEADER;
pub use serve::{BindError, bind, serve};
pub use shape::read_value;
