//! What a failure of an engine means to the caller of a port.

use tourin_shared_events::mysql;
use tourin_shared_events::outbox::OutboxFull;

use crate::app::StoreError;

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        if is_unreachable(&error) {
            Self::Unavailable(error.into())
        } else {
            Self::Failed(error.into())
        }
    }
}

fn is_unreachable(error: &sqlx::Error) -> bool {
    let sqlite = error
        .as_database_error()
        .and_then(|cause| cause.try_downcast_ref::<sqlx::sqlite::SqliteError>())
        .and_then(|cause| sqlx::error::DatabaseError::code(cause)?.parse::<u32>().ok());
    match sqlite {
        // SQLITE_BUSY and SQLITE_LOCKED with their extended codes, SQLITE_IOERR, SQLITE_FULL,
        // SQLITE_CANTOPEN: somebody else holds the file, or the disk is at fault.
        Some(code) => matches!(code & 0xff, 5 | 6 | 10 | 13 | 14),
        None => mysql::is_unreachable(error),
    }
}

/// From an adapter of shared-events, which wraps the engine's errors.
pub(super) fn of_engine(error: anyhow::Error) -> StoreError {
    match error.downcast::<sqlx::Error>() {
        Ok(error) => error.into(),
        // The change is refused, for it could not be told of; the caller may come again.
        Err(error) if error.is::<OutboxFull>() => StoreError::Unavailable(error),
        Err(error) => StoreError::Failed(error),
    }
}

/// The engine's error behind a port's, if there is one.
pub(super) fn engine_error(error: &StoreError) -> Option<&sqlx::Error> {
    let (StoreError::Unavailable(cause) | StoreError::Failed(cause)) = error;
    cause.downcast_ref()
}
