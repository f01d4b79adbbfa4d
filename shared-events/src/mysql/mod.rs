//! MySQL 8 and MariaDB 10.6 or newer for Tourin's services. All SQL works on both.
//!
//! # Isolation
//! Writing transactions run under READ COMMITTED. They lock the rows that must not change by name (`FOR UPDATE`, `LOCK
//! IN SHARE MODE`), and there are no gap locks. Statements that must read the same state use a [`Database::snapshot`].

mod errors;
mod migrate;
mod probe;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod url;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection, MySqlPool, MySqlPoolOptions};
use sqlx::pool::PoolConnectionMetadata;
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, MySql, Transaction};
use tokio::time::timeout;

pub use self::errors::{Conflicts, is_conflict, is_unique_violation, is_unreachable, refusal};
pub use self::url::{InvalidMysqlUrl, MysqlUrl};
use crate::backoff::Backoff;
pub use crate::sqlite::{Migration, from_micros, to_micros};

/// The time-out for opening a connection, TLS and authentication included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a caller waits for a free connection, or for the server to return.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that was idle for longer is tested before it is used.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// The delays between attempts to reach the server at the start.
const START_BACKOFF: Backoff =
    Backoff { base: Duration::from_millis(200), max: Duration::from_secs(5), jitter: 0.5 };
/// The bound on one operation.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(10);

/// The settings of every connection. A lock is waited for up to 3 s. The server aborts a reading statement after 10 s
/// (MariaDB: any statement). Each server has its own variable, in a comment that only that server executes.
macro_rules! session {
    ($transactions:literal) => {
        concat!(
            "SET SESSION TRANSACTION ISOLATION LEVEL ",
            $transactions,
            "; SET SESSION innodb_lock_wait_timeout = 3 /*M!100100 , max_statement_time = 10 */ \
             /*!80000 , max_execution_time = 10000 */"
        )
    };
}
const WRITER_SESSION: &str = session!("READ COMMITTED");
const READER_SESSION: &str = session!("REPEATABLE READ, READ ONLY");

/// The connection limits of a [`Database`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSizes {
    /// Connections that read. Default 16.
    pub readers: u32,
    /// Connections that write. Default 8.
    pub writers: u32,
}

impl Default for PoolSizes {
    fn default() -> Self {
        Self { readers: 16, writers: 8 }
    }
}

/// A database on a server. Clones share its connections.
///
/// Readers have separate connections, which refuse to write, so that many searches do not delay a bookmark. Broken
/// connections are replaced when needed; a caller waits up to 2 s for one.
#[derive(Clone)]
pub struct Database {
    shown: Arc<str>,
    options: Arc<MySqlConnectOptions>,
    writers: MySqlPool,
    readers: MySqlPool,
    /// The row of this process's write probe.
    probe_row: u16,
}

impl fmt::Debug for Database {
    // The options contain the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Database").field(&self.shown).finish()
    }
}

impl Database {
    /// Opens the database, which must exist. Waits for the server without a limit, with growing delays, and logs the
    /// reason. Drop the future to stop waiting.
    ///
    /// # Errors
    /// When the server refuses for good: wrong user, password or database.
    pub async fn open(url: &MysqlUrl, sizes: PoolSizes) -> anyhow::Result<Self> {
        let options = Arc::new(url.options().clone().disable_statement_logging());
        let shown: Arc<str> = url.to_string().into();
        wait_for(&options, &shown).await?;
        let pool = |size: u32, session: &'static str| {
            MySqlPoolOptions::new()
                .max_connections(size.max(1))
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .test_before_acquire(false)
                .before_acquire(|connection, idle| Box::pin(works(connection, idle)))
                .after_connect(move |connection, _| {
                    Box::pin(async move {
                        connection.execute(session).await?;
                        Ok(())
                    })
                })
                .connect_lazy_with(options.as_ref().clone())
        };
        let writers = pool(sizes.writers, WRITER_SESSION);
        let readers = pool(sizes.readers, READER_SESSION);
        Ok(Self { shown, options, writers, readers, probe_row: probe::any_row() })
    }

    /// Starts a writing transaction (READ COMMITTED). Rolled back unless committed.
    ///
    /// # Errors
    /// When no connection is free or can be made within 2 s.
    pub async fn write(&self) -> sqlx::Result<Transaction<'static, MySql>> {
        begin(&self.writers, "START TRANSACTION").await
    }

    /// The writing connections, for a single statement that is a transaction by itself.
    pub fn writer(&self) -> &MySqlPool {
        &self.writers
    }

    /// A reading transaction: all of its statements see the state at this call.
    ///
    /// # Errors
    /// When no connection is free or can be made within 2 s.
    pub async fn snapshot(&self) -> sqlx::Result<Transaction<'static, MySql>> {
        begin(&self.readers, "START TRANSACTION WITH CONSISTENT SNAPSHOT").await
    }

    /// The reading connections, for a single statement. They refuse to write.
    pub fn reader(&self) -> &MySqlPool {
        &self.readers
    }

    /// Closes all connections once they are returned.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writers.close().await;
    }
}

/// Runs an operation of the database, at most 10 s long.
///
/// # Errors
/// The operation's own, or that it took too long.
pub async fn bounded<T, E: From<sqlx::Error>>(
    operation: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    match timeout(OPERATION_TIMEOUT, operation).await {
        Ok(result) => result,
        Err(_elapsed) => Err(too_late().into()),
    }
}

fn too_late() -> sqlx::Error {
    let error = format!("no answer within {} s", OPERATION_TIMEOUT.as_secs());
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, error))
}

/// Tests for a connection that broke while it was idle, before any statement that could then run twice.
async fn begin(
    pool: &MySqlPool,
    statement: &'static str,
) -> sqlx::Result<Transaction<'static, MySql>> {
    // Each attempt uses up one broken connection.
    let mut left = pool.options().get_max_connections();
    loop {
        match pool.begin_with(statement).await {
            Err(sqlx::Error::Io(_)) if left > 0 => left -= 1,
            result => return result,
        }
    }
}

async fn works(
    connection: &mut MySqlConnection,
    idle: PoolConnectionMetadata,
) -> sqlx::Result<bool> {
    if idle.idle_for < TRUSTED_IDLE {
        return Ok(true);
    }
    Ok(matches!(timeout(TRUSTED_IDLE, connection.ping()).await, Ok(Ok(()))))
}

async fn connect(options: &MySqlConnectOptions) -> sqlx::Result<MySqlConnection> {
    timeout(CONNECT_TIMEOUT, options.connect()).await.unwrap_or_else(|_elapsed| {
        let error = format!("no connection within {} s", CONNECT_TIMEOUT.as_secs());
        Err(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, error)))
    })
}

/// Returns when the server accepts a connection.
async fn wait_for(options: &MySqlConnectOptions, shown: &str) -> anyhow::Result<()> {
    let mut failures = 0;
    loop {
        let error = match connect(options).await {
            Ok(connection) => {
                // The result of closing does not matter.
                drop(connection.close().await);
                if failures > 0 {
                    tracing::info!(database = shown, "the database answers");
                }
                return Ok(());
            }
            Err(error) if errors::is_permanent_refusal(&error) => {
                return Err(error).with_context(|| format!("cannot use the database {shown}"));
            }
            Err(error) => error,
        };
        failures += 1;
        let pause = START_BACKOFF.after(failures);
        tracing::warn!(
            database = shown,
            %error,
            retry_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            "waiting for the database"
        );
        tokio::time::sleep(pause).await;
    }
}
