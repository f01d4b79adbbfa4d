//! One writer that commits in batches.
//!
//! SQLite has one writer, and each commit waits for the disk: changes that arrive while a commit is in progress share the
//! next one.

use std::any::Any;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::SqliteConnection;
use tourin_shared_events::sqlite::Database;

use crate::app::ports::PortError;
use crate::batcher::{Batcher, Failure, Work};

/// The longest wait for a commit, the wait for the writer included. Less than the consumers' limit of 10 s,
/// after which the event would be blamed for an outage.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(8);

/// One atomic change of the database.
#[async_trait]
pub(super) trait Change: Send + Sync + 'static {
    /// The result for the caller.
    type Output: Send + 'static;

    /// Applies the change inside a transaction that other changes share. After a rollback it is applied
    /// again, so it must not keep state.
    async fn apply(&self, connection: &mut SqliteConnection) -> sqlx::Result<Self::Output>;
}

/// A handle on the writer.
#[derive(Clone)]
pub(super) struct Writer(Batcher<Commits>);

impl Writer {
    /// Starts the writer of `db`. Must be called inside a tokio runtime.
    pub(super) fn start(db: Database) -> Self {
        Self(Batcher::start(Commits(db)))
    }

    /// Reports a panic of the writer.
    pub(super) fn failure(&self) -> Failure {
        self.0.failure()
    }

    /// Applies a change, and returns once it is committed. After a time-out it may still be committed.
    pub(super) async fn commit<C: Change>(&self, change: C) -> Result<C::Output, PortError> {
        let committed = tokio::time::timeout(COMMIT_TIMEOUT, self.0.submit(Box::new(change)));
        let output = committed.await.unwrap_or_else(|_elapsed| {
            let limit = COMMIT_TIMEOUT.as_secs();
            Err(PortError::unavailable(anyhow::anyhow!("not committed within {limit} s")))
        })?;
        Ok(*output.downcast().expect("the output of this change"))
    }
}

/// A [`Change`], whatever its output.
#[async_trait]
trait AnyChange: Send + Sync {
    async fn apply(&self, connection: &mut SqliteConnection) -> sqlx::Result<Box<dyn Any + Send>>;
}

#[async_trait]
impl<C: Change> AnyChange for C {
    async fn apply(&self, connection: &mut SqliteConnection) -> sqlx::Result<Box<dyn Any + Send>> {
        Ok(Box::new(Change::apply(self, connection).await?))
    }
}

struct Commits(Database);

impl Work for Commits {
    type Item = Box<dyn AnyChange>;
    type Output = Box<dyn Any + Send>;
    const NAME: &'static str = "the store's writer";
    const MAX: usize = 128;

    async fn run(&self, changes: &[Self::Item]) -> Vec<Result<Self::Output, PortError>> {
        match self.commit(changes).await {
            Ok(outputs) => outputs.into_iter().map(Ok).collect(),
            // In an outage no single change is the cause, so they are not retried one by one.
            Err(error @ PortError::Unavailable(_)) => {
                changes.iter().map(|_| Err(error.clone())).collect()
            }
            Err(error) if changes.len() == 1 => vec![Err(error)],
            Err(error) => {
                tracing::warn!(%error, changes = changes.len(), "a batch of changes failed; trying each alone");
                let mut results = Vec::with_capacity(changes.len());
                for change in changes {
                    let committed = self.commit(std::slice::from_ref(change)).await;
                    results.push(committed.map(|mut outputs| outputs.remove(0)));
                }
                results
            }
        }
    }
}

impl Commits {
    /// Applies all in one transaction; an error rolls all of them back.
    async fn commit(
        &self,
        changes: &[Box<dyn AnyChange>],
    ) -> Result<Vec<Box<dyn Any + Send>>, PortError> {
        let mut transaction = self.0.write().await?;
        let mut outputs = Vec::with_capacity(changes.len());
        for change in changes {
            outputs.push(change.as_ref().apply(&mut transaction).await?);
        }
        transaction.commit().await?;
        Ok(outputs)
    }
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
    async fn when_the_writer_dies_commits_fail_and_the_watcher_is_notified() {
        let folder = tempfile::tempdir().unwrap();
        let db = Database::open(&folder.path().join("numbers.db"), 1).await.unwrap();
        let writer = Writer::start(db);
        let mut failure = writer.failure();
        let (first, second) = tokio::join!(writer.commit(Panic), writer.commit(Insert(1)));
        for error in [first, second, writer.commit(Insert(2)).await].map(Result::unwrap_err) {
            assert!(matches!(error, PortError::Unavailable(_)), "{error:?}");
            assert!(error.to_string().contains("a change that should not be"), "{error}");
        }
        let reason = failure.failed().await;
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
