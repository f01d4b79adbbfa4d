//! Operations of a store: their spans, and their outcomes for readiness.

use tourin_chassis::health::{Access, Outcomes, Trouble};
use tourin_chassis::telemetry::{DbCall, db_call};

use super::errors::trouble;
use crate::app::StoreError;

/// Operations that only read; others may write.
const READS: [&str; 3] = ["select", "search", "search map"];

/// Runs an operation on a collection in a client span of the database `system` (OpenTelemetry's name),
/// and counts its outcome. The span has only fixed names, no parameters such as ids or search texts.
pub(super) async fn operation<T>(
    system: &'static str,
    outcomes: &Outcomes,
    (name, collection): (&'static str, &'static str),
    run: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let result = db_call(DbCall::new(system, name, collection), class, run).await;
    let access = if READS.contains(&name) { Access::Read } else { Access::Write };
    match &result {
        Ok(_) => outcomes.succeeded(access),
        Err(error @ StoreError::Unavailable(_)) => {
            let (Trouble::Refuses(why) | Trouble::Away(why)) = trouble(error);
            outcomes.failed(access, &why);
        }
        // The request may be the cause, not the engine.
        Err(StoreError::Failed(_)) => {}
    }
    result
}

/// The class of the error, without the engine's message.
fn class(error: &StoreError) -> &'static str {
    match error {
        StoreError::Unavailable(_) => "unavailable",
        StoreError::Failed(_) => "failed",
    }
}
