//! Maps an engine's errors to a port's.

use std::sync::Arc;

use redis::RedisError;
use tourin_chassis::health::Trouble;
use tourin_shared_events::outbox::OutboxFull;
use tourin_shared_events::{mysql, sqlite};

use crate::app::StoreError;

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        // Each function returns false for an error of the other engine.
        if sqlite::is_unreachable(&error) || mysql::is_unreachable(&error) {
            Self::Unavailable(error.into())
        } else {
            Self::Failed(error.into())
        }
    }
}

/// Maps an error of a shared-events adapter, which wraps the engine's.
pub(super) fn of_engine(error: anyhow::Error) -> StoreError {
    match error.downcast::<sqlx::Error>() {
        Ok(error) => error.into(),
        // The change is refused, because its event could not be recorded; the caller may retry.
        Err(error) if error.is::<OutboxFull>() => StoreError::Unavailable(error),
        Err(error) => StoreError::Failed(error),
    }
}

/// The cause of a port's error, also of one that several callers share.
fn cause(error: &StoreError) -> &anyhow::Error {
    let (StoreError::Unavailable(cause) | StoreError::Failed(cause)) = error;
    cause.downcast_ref::<Arc<StoreError>>().map_or(cause, |shared| self::cause(shared))
}

/// The engine's error behind a port's error, if there is one.
pub(super) fn engine_error(error: &StoreError) -> Option<&sqlx::Error> {
    cause(error).downcast_ref()
}

/// The state of the engine by a failure, for operators, without data of the request.
pub(super) fn trouble(error: &StoreError) -> Trouble {
    let cause = cause(error);
    let refusal = if let Some(error) = cause.downcast_ref::<sqlx::Error>() {
        sqlite::refusal(error).or_else(|| mysql::refusal(error))
    } else if let Some(error) = cause.downcast_ref::<RedisError>() {
        tourin_chassis::redis::refusal(error).map(str::to_owned)
    } else if cause.is::<OutboxFull>() {
        Some("the outbox is full".to_owned())
    } else {
        None
    };
    match refusal {
        Some(words) => Trouble::Refuses(words),
        None => Trouble::Away("it does not answer".to_owned()),
    }
}
