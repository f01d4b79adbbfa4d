//! An operation of a store: its span, and its outcome for readiness.

use tourin_chassis::health::{Access, Outcomes, Trouble};
use tourin_chassis::telemetry::{DbCall, db_call};

use super::errors::trouble;
use crate::app::StoreError;

/// Operations that only read. Others may have written.
const READS: [&str; 3] = ["select", "search", "search map"];

/// Runs an operation on a collection within a client span of the database `system` (OpenTelemetry's name), and
/// counts its outcome.
///
/// The words are fixed. What an operation is given (ids, addresses, what somebody searches for) is in none of
/// them.
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
        // It may be the request's own fault.
        Err(StoreError::Failed(_)) => {}
    }
    result
}

/// The kind of failure, without what the engine says of it.
fn class(error: &StoreError) -> &'static str {
    match error {
        StoreError::Unavailable(_) => "unavailable",
        StoreError::Failed(_) => "failed",
    }
}
