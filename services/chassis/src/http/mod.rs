//! HTTP as every service serves it: the error body, the extractors that answer with it, the layers
//! around a service's routes, and a server with bounds that drains.

mod error;
mod extract;
pub mod fields;
mod layers;
mod observe;
mod serve;
#[cfg(test)]
mod tests;

pub use error::{ApiError, ErrorBody};
pub use extract::{Json, Params, Path, Segments};
pub use layers::{HttpLimits, observed_router, operators_router, service_router};
pub use observe::TRACE_RESPONSE_HEADER;
pub use serve::{BindError, bind, serve};
