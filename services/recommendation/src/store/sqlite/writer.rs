//! One writer that commits in groups.
//!
//! SQLite has one writer, and each commit waits for the disk. Changes that arrive while a commit is
//! under way are applied in the next transaction together: alone, a change waits for one sync;
//! under load, a hundred share one. Nobody waits for a group to fill.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt as _;
use sqlx::SqliteConnection;
use tokio::sync::{mpsc, oneshot};
use tourin_chassis::metrics::count_panic;
use tourin_shared_events::sqlite::Database;

use crate::app::ports::PortError;
use crate::store::Failure;

/// Changes that wait for the writer; more make their senders wait.
const QUEUE: usize = 1_024;
/// The most changes in one transaction.
const GROUP: usize = 128;
/// The longest wait for a commit, its turn included. Less than the consumers' limit of 10 s for an event, which does not
/// know an outage from a fault.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(8);

/// One atomic change of the database.
#[async_trait]
pub(super) trait Change: Send + Sync + 'static {
    /// What it tells its sender.
    type Output: Send + 'static;

    /// Applies it inside a transaction that others share. It may be applied again after a
    /// rollback, so that it must not remember anything.
    async fn apply(&self, connection: &mut SqliteConnection) -> sqlx::Result<Self::Output>;
}

/// A handle on the writer. The writing task belongs to the handles: it ends, after the last change,
/// when all of them are gone. When it ends before, by a panic, every commit fails and
/// [`Writer::failure`] tells whoever watches.
#[derive(Clone)]
pub(super) struct Writer {
    jobs: mpsc::Sender<Box<dyn Job>>,
    failure: Failure,
}

impl Writer {
    /// Starts the writer of `db`. Must be called inside a tokio runtime.
    pub(super) fn start(db: Database) -> Self {
        let (sender, jobs) = mpsc::channel(QUEUE);
        let (failed, failure) = Failure::new();
        tokio::spawn(async move {
            if let Err(panic) = AssertUnwindSafe(run(db, jobs)).catch_unwind().await {
                count_panic();
                let reason = format!("the store's writer panicked: {}", message(&*panic));
                tracing::error!(reason, "nothing is written any more");
                failed.send_replace(Some(reason));
            }
        });
        Self { jobs: sender, failure }
    }

    /// Tells when the writer has ended although it should not.
    pub(super) fn failure(&self) -> Failure {
        self.failure.clone()
    }

    /// Applies a change; returns once it is committed. After a time-out it may be committed all the
    /// same.
    pub(super) async fn commit<C: Change>(&self, change: C) -> Result<C::Output, PortError> {
        let (reply, committed) = oneshot::channel();
        let job = Pending { change, output: None, reply };
        let commit = async {
            if self.jobs.send(Box::new(job)).await.is_ok()
                && let Ok(result) = committed.await
            {
                return result;
            }
            let reason = self.failure().happened().await;
            Err(PortError::unavailable(anyhow::anyhow!("the store cannot be written: {reason}")))
        };
        tokio::time::timeout(COMMIT_TIMEOUT, commit).await.unwrap_or_else(|_elapsed| {
            let limit = COMMIT_TIMEOUT.as_secs();
            Err(PortError::unavailable(anyhow::anyhow!("not committed within {limit} s")))
        })
    }
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// A [`Change`] with its sender, whatever its output.
#[async_trait]
trait Job: Send {
    async fn apply(&mut self, connection: &mut SqliteConnection) -> sqlx::Result<()>;
    fn finish(self: Box<Self>, result: Result<(), PortError>);
}

struct Pending<C: Change> {
    change: C,
    output: Option<C::Output>,
    reply: oneshot::Sender<Result<C::Output, PortError>>,
}

#[async_trait]
impl<C: Change> Job for Pending<C> {
    async fn apply(&mut self, connection: &mut SqliteConnection) -> sqlx::Result<()> {
        self.output = Some(self.change.apply(connection).await?);
        Ok(())
    }

    fn finish(self: Box<Self>, result: Result<(), PortError>) {
        let output = self.output;
        let result = result.map(|()| output.expect("a committed change has been applied"));
        // Whoever asked may be gone; the change is committed all the same.
        if self.reply.send(result).is_err() {
            tracing::trace!("nobody waits for a committed change");
        }
    }
}

async fn run(db: Database, mut jobs: mpsc::Receiver<Box<dyn Job>>) {
    let mut group = Vec::with_capacity(GROUP);
    while jobs.recv_many(&mut group, GROUP).await > 0 {
        match commit(&db, &mut group).await {
            Ok(()) => group.drain(..).for_each(|job| job.finish(Ok(()))),
            // An outage is nobody's fault, and waiting for it once is enough.
            Err(error @ PortError::Unavailable(_)) => finish_all(&mut group, error),
            Err(error) if group.len() == 1 => finish_all(&mut group, error),
            Err(error) => {
                tracing::warn!(%error, changes = group.len(), "a group of changes failed; trying each alone");
                for job in group.drain(..) {
                    let mut alone = vec![job];
                    match commit(&db, &mut alone).await {
                        Ok(()) => alone.drain(..).for_each(|job| job.finish(Ok(()))),
                        Err(error) => finish_all(&mut alone, error),
                    }
                }
            }
        }
    }
}

fn finish_all(group: &mut Vec<Box<dyn Job>>, error: PortError) {
    for job in group.drain(..) {
        job.finish(Err(error.clone()));
    }
}

/// Applies all in one transaction; an error rolls all of them back.
async fn commit(db: &Database, group: &mut [Box<dyn Job>]) -> Result<(), PortError> {
    let mut transaction = db.write().await?;
    for job in group {
        job.apply(&mut transaction).await?;
    }
    Ok(transaction.commit().await?)
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;

    use super::*;

    struct Insert(i64);

    #[async_trait]
    impl Change for Insert {
        type Output = ();

        async fn apply(&self, connection: &mut SqliteConnection) -> sqlx::Result<()> {
            sqlx::query("INSERT INTO numbers (number) VALUES (?)")
                .bind(self.0)
                .execute(connection)
                .await
                .map(|_| ())
        }
    }

    #[tokio::test]
    async fn a_change_that_fails_takes_no_other_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let db = Database::open(&folder.path().join("numbers.db"), 1).await.unwrap();
        let mut setup = db.write().await.unwrap();
        sqlx::query("CREATE TABLE numbers (number INTEGER CHECK (number <> 13))")
            .execute(&mut *setup)
            .await
            .unwrap();
        setup.commit().await.unwrap();

        let writer = Writer::start(db.clone());
        let results = join_all((0..40).map(|number| writer.commit(Insert(number)))).await;

        for (number, result) in results.iter().enumerate() {
            assert_eq!(result.is_ok(), number != 13, "{number}");
        }
        let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM numbers")
            .fetch_one(db.reader())
            .await
            .unwrap();
        assert_eq!(kept, 39);
    }

    struct Panic;

    #[async_trait]
    impl Change for Panic {
        type Output = ();

        async fn apply(&self, _: &mut SqliteConnection) -> sqlx::Result<()> {
            panic!("a change that should not be");
        }
    }

    #[tokio::test]
    async fn when_the_writer_dies_every_commit_says_so_and_whoever_watches_hears_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let db = Database::open(&folder.path().join("numbers.db"), 1).await.unwrap();
        let writer = Writer::start(db);
        let mut failure = writer.failure();
        let (first, second) = tokio::join!(writer.commit(Panic), writer.commit(Insert(1)));
        for error in [first, second, writer.commit(Insert(2)).await].map(Result::unwrap_err) {
            assert!(matches!(error, PortError::Unavailable(_)), "{error:?}");
            assert!(error.to_string().contains("a change that should not be"), "{error}");
        }
        let reason = failure.happened().await;
        assert!(reason.contains("a change that should not be"), "{reason}");
    }

    struct Fill;

    #[async_trait]
    impl Change for Fill {
        type Output = ();

        async fn apply(&self, connection: &mut SqliteConnection) -> sqlx::Result<()> {
            let fill = "INSERT INTO blobs VALUES (zeroblob(1000000))";
            sqlx::query(fill).execute(connection).await.map(drop)
        }
    }

    #[tokio::test]
    async fn a_full_disk_is_an_outage_and_a_wrong_statement_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let db = Database::open(&folder.path().join("numbers.db"), 1).await.unwrap();
        let mut setup = db.write().await.unwrap();
        for statement in ["CREATE TABLE blobs (bytes BLOB)", "PRAGMA max_page_count = 10"] {
            sqlx::query(statement).execute(&mut *setup).await.unwrap();
        }
        setup.commit().await.unwrap();
        let writer = Writer::start(db);
        let (full, wrong) = (writer.commit(Fill).await, writer.commit(Insert(1)).await);
        assert!(matches!(full, Err(PortError::Unavailable(_))), "{full:?}");
        assert!(matches!(wrong, Err(PortError::Failed(_))), "{wrong:?}");
    }

    #[test]
    fn a_store_that_is_busy_or_gone_is_an_outage() {
        for error in [sqlx::Error::PoolTimedOut, sqlx::Error::PoolClosed] {
            assert!(matches!(PortError::from(error), PortError::Unavailable(_)));
        }
        assert!(matches!(PortError::from(sqlx::Error::RowNotFound), PortError::Failed(_)));
    }
}
