//! Spans of what happens within a request or an event's attempt, for code that is handed neither.
//!
//! Where nothing is being traced there is none: what a timer does (probes, pruning) begins no trace by
//! coming this way.

use std::future::Future;

use opentelemetry::Context;
use opentelemetry::trace::TraceContextExt as _;

use super::calls::DbCall;
use super::span::Span;

/// Whether something is being traced here.
fn is_within_trace() -> bool {
    Context::map_current(|context| context.span().span_context().is_valid())
}

/// A piece of the current work that is worth a line of its own in the waterfall.
pub fn part(name: &'static str) -> Span {
    if is_within_trace() { Span::current().child(name) } else { Span::none() }
}

/// Runs an operation of a database or a cache within a client span. `class` says in a fixed word of
/// which kind a failure is.
///
/// The span is not current within the operation: what is recorded there for later, such as an event
/// in the outbox, belongs to the work that asked for it and not to the call.
pub async fn db_call<T, E>(
    call: DbCall<'_>,
    class: impl FnOnce(&E) -> &'static str,
    operation: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    if !is_within_trace() {
        return operation.await;
    }
    let span = Span::current().db(&call);
    let result = operation.await;
    if let Err(error) = &result {
        span.set_error(class(error));
    }
    result
}
