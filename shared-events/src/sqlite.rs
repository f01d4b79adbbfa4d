//! SQLite as Tourin's services use it: one writer, several readers, commits that survive a power cut.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use sqlx::error::DatabaseError;
use sqlx::migrate::{MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteError, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{Connection as _, SqlSafeStr as _, Sqlite, SqliteConnection, Transaction};

/// How long a statement waits for another process's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a caller waits for the writer or for a free reader.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// The size to which a checkpoint cuts the write-ahead log, in bytes (64 MiB).
const JOURNAL_SIZE_LIMIT: &str = "67108864";

/// The bytes of the probe: about the pages that a log-in changes, so that a full disk fails both.
const PROBE_BYTES: u32 = 16_384;
const PROBE_MIGRATIONS: &[Migration] = &[Migration {
    version: 1,
    description: "small writes",
    sql: "CREATE TABLE write_probe (id INTEGER PRIMARY KEY, filler BLOB NOT NULL)",
}];

/// An open database file. Clones share its connections.
///
/// SQLite has one writer at a time. So there is one writing connection with a fair queue, instead of spinning on the
/// file's lock. Readers see the last commit and never wait for the writer (write-ahead log). The writer syncs the log
/// at every commit (`synchronous=FULL`): group many small transactions into one, so that they share the sync. Another
/// process may write too. A transaction waits up to 5 s for it.
#[derive(Clone, Debug)]
pub struct Database {
    path: PathBuf,
    writer: SqlitePool,
    readers: SqlitePool,
}

/// One step of a schema's history.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// Grows with each step.
    pub version: i64,
    /// What it does, in a few words.
    pub description: &'static str,
    /// One or more statements. Never change them once released: the database keeps their checksum, which is compared.
    pub sql: &'static str,
}

impl Database {
    /// Opens the file with one writing and up to `readers` (at least 1) reading connections. A missing file is created
    /// with access for its owner only, and SQLite gives its companions (`-wal`, `-shm`) the same mode.
    ///
    /// # Errors
    /// When the file cannot be opened or is not a database.
    pub async fn open(path: &Path, readers: u32) -> anyhow::Result<Self> {
        let opening = || format!("cannot open the database {}", path.display());
        create_private_file(path).with_context(opening)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(false)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true)
            .pragma("journal_size_limit", JOURNAL_SIZE_LIMIT);
        let pool = || {
            SqlitePoolOptions::new()
                .acquire_timeout(ACQUIRE_TIMEOUT)
                // Local connections do not go stale. Reopening them would only lose their caches.
                .idle_timeout(None)
                .max_lifetime(None)
                .test_before_acquire(false)
                // SQLite may end a transaction by itself, for example when the disk is full. The driver still counts
                // it, and this connection could begin no other one. A new connection starts clean.
                .before_acquire(|connection, _| {
                    let usable = !connection.is_in_transaction();
                    Box::pin(async move { Ok(usable) })
                })
        };
        // The writer first: it enables the write-ahead log.
        let writer =
            pool().max_connections(1).connect_with(options.clone()).await.with_context(opening)?;
        // Not read-only: a reader of a write-ahead log may have to create its shared memory file.
        let readers = pool()
            .max_connections(readers.max(1))
            .connect_with(options.pragma("query_only", "1"))
            .await
            .with_context(opening)?;
        Ok(Self { path: path.to_owned(), writer, readers })
    }

    /// Starts a writing transaction (`BEGIN IMMEDIATE`) and waits for the writer. Rolled back unless committed.
    ///
    /// Within it, never await anything but its statements: all other writers are waiting.
    ///
    /// # Errors
    /// When the writer is not free within 5 s, or another process holds the file's lock for as long.
    pub async fn write(&self) -> sqlx::Result<Transaction<'static, Sqlite>> {
        self.writer.begin_with("BEGIN IMMEDIATE").await
    }

    /// The reading connections. They refuse to write.
    pub fn reader(&self) -> &SqlitePool {
        &self.readers
    }

    /// The one writing connection, to inspect it. Use [`write`](Self::write) to write.
    pub fn writer(&self) -> &SqlitePool {
        &self.writer
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Migrates a schema: runs the steps that `table` does not list yet, all in one transaction. Several schemas can
    /// share a file, each with its own table. Safe when several processes do it at once.
    ///
    /// # Errors
    /// When a step fails, when a completed step was changed since, or when a newer version of the program migrated the
    /// file.
    pub async fn migrate(&self, steps: &[Migration], table: &'static str) -> anyhow::Result<()> {
        let steps = steps
            .iter()
            .map(|step| {
                sqlx::migrate::Migration::new(
                    step.version,
                    step.description.into(),
                    MigrationType::Simple,
                    step.sql.into_sql_str(),
                    false,
                )
            })
            .collect();
        let mut migrator = Migrator::with_migrations(steps);
        migrator.dangerous_set_table_name(table);
        let migrating = || format!("cannot migrate {table} in {}", self.path.display());
        let mut transaction = self.write().await.with_context(migrating)?;
        migrator.run_direct(None, &mut *transaction, false).await.with_context(migrating)?;
        transaction.commit().await.with_context(migrating)
    }

    /// Creates the table of [`Database::write_probe`] if it is missing.
    ///
    /// # Errors
    /// Those of [`Database::migrate`].
    pub async fn prepare_probe(&self) -> anyhow::Result<()> {
        self.migrate(PROBE_MIGRATIONS, "write_probe_migrations").await
    }

    /// Writes a row of its own and commits: a file on a full disk can still be read.
    ///
    /// # Errors
    /// Those of a write; [`refusal`] describes them.
    pub async fn write_probe(&self) -> sqlx::Result<()> {
        let mut transaction = self.write().await?;
        write_probe(&mut transaction).await?;
        transaction.commit().await
    }

    /// Closes all connections once they are returned. Not needed for durability.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// [`Database::write_probe`] inside a shared transaction.
///
/// # Errors
/// Those of a write.
pub async fn write_probe(connection: &mut SqliteConnection) -> sqlx::Result<()> {
    let write = "INSERT OR REPLACE INTO write_probe (id, filler) VALUES (1, zeroblob(?))";
    sqlx::query(write).bind(PROBE_BYTES).execute(connection).await?;
    Ok(())
}

/// SQLite's primary result code, if SQLite caused the error.
fn code(error: &sqlx::Error) -> Option<u32> {
    let cause = error.as_database_error()?.try_downcast_ref::<SqliteError>()?;
    // The last byte of the extended code is the primary one.
    DatabaseError::code(cause)?.parse::<u32>().ok().map(|code| code & 0xff)
}

/// Why the file cannot be written or read, by the code. `None` for a faulty statement.
fn known_refusal(code: u32) -> Option<&'static str> {
    match code {
        // SQLITE_BUSY and SQLITE_LOCKED.
        5 | 6 => Some("locked by another process"),
        // SQLITE_READONLY, SQLITE_IOERR, SQLITE_FULL, SQLITE_CANTOPEN.
        8 => Some("read-only"),
        10 => Some("disk error"),
        13 => Some("disk full"),
        14 => Some("the file cannot be opened"),
        _ => None,
    }
}

/// Whether another process holds the file, or the disk fails: a retry may succeed.
pub fn is_unreachable(error: &sqlx::Error) -> bool {
    use sqlx::Error as E;
    match error {
        E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed | E::Io(_) => true,
        _ => code(error).and_then(known_refusal).is_some(),
    }
}

/// Why the file refuses the work, for an operator; `None` when SQLite did not cause the error.
pub fn refusal(error: &sqlx::Error) -> Option<String> {
    let code = code(error)?;
    Some(match (known_refusal(code), code) {
        (Some(words), _) => words.to_owned(),
        // SQLITE_CORRUPT, SQLITE_NOTADB.
        (None, 11 | 26) => "the file is damaged".to_owned(),
        (None, code) => format!("error {code}"),
    })
}

/// Creates missing folders with access for their owner only: services keep personal data in them. An existing folder is
/// not changed.
///
/// # Errors
/// When it cannot be created, or another kind of file is there.
pub fn create_private_folder(folder: &Path) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Locks a folder for one process, as long as the returned file is kept. A second process that asks for the same `name`
/// (the service's) fails.
///
/// # Errors
/// When another process holds the lock ([`ErrorKind::WouldBlock`]), or the folder cannot be written to.
pub fn hold_folder(folder: &Path, name: &str) -> std::io::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(folder.join(format!("{name}.lock")))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(std::io::Error::new(
            ErrorKind::WouldBlock,
            format!("another {name} process uses this folder"),
        )),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Creates an empty file, readable by its owner only, if there is none.
fn create_private_file(path: &Path) -> std::io::Result<()> {
    // Do not open an existing file: closing it would release every lock that this process has on it.
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        created => created.map(drop),
    }
}

/// A time as SQLite stores it here: microseconds since the epoch.
pub fn to_micros(time: DateTime<Utc>) -> i64 {
    time.timestamp_micros()
}

/// The inverse of [`to_micros`].
///
/// # Errors
/// When the number is beyond the range of a date (about 262,000 years).
pub fn from_micros(micros: i64) -> anyhow::Result<DateTime<Utc>> {
    DateTime::from_timestamp_micros(micros).with_context(|| format!("{micros} is not a time"))
}
