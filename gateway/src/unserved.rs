//! Why a request got no response of its service.

/// Why a service did not serve a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unserved {
    /// No instance is up.
    NoInstance,
    /// No connection could be made to an instance.
    Unreachable,
    /// The circuit breaker is open, or half open with all its probes under way.
    BreakerOpen,
    /// The service has as many requests as its concurrency limit allows.
    Overloaded,
    /// The response did not come in time.
    TimedOut,
    /// The connection was lost before a response, or it was not HTTP.
    BrokenOff,
    /// A status of 500 or more.
    ServerError,
}

impl Unserved {
    /// The name in headers, metrics and spans.
    pub fn label(self) -> &'static str {
        match self {
            Self::NoInstance => "no_instance",
            Self::Unreachable => "unreachable",
            Self::BreakerOpen => "breaker_open",
            Self::Overloaded => "overloaded",
            Self::TimedOut => "timeout",
            Self::BrokenOff => "broken_off",
            Self::ServerError => "server_error",
        }
    }
}
