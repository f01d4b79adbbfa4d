//! One writer that commits in groups.
//!
//! SQLite has one writer, and each commit waits for the disk. Changes that arrive while a commit is
//! under way are applied in the next transaction together: alone, a change waits for one sync;
//! under load, a hundred share one. Nobody waits for a group to fill.

use async_trait::async_trait;
use sqlx::SqliteConnection;
use tokio::sync::{mpsc, oneshot};
use tourin_shared_events::sqlite::Database;

use crate::app::ports::PortError;

/// Changes that wait for the writer; more make their senders wait.
const QUEUE: usize = 1_024;
/// The most changes in one transaction.
const GROUP: usize = 128;

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
/// when all of them are gone.
#[derive(Clone)]
pub(super) struct Writer(mpsc::Sender<Box<dyn Job>>);

impl Writer {
    /// Starts the writer of `db`. Must be called inside a tokio runtime.
    pub(super) fn start(db: Database) -> Self {
        let (sender, jobs) = mpsc::channel(QUEUE);
        tokio::spawn(run(db, jobs));
        Self(sender)
    }

    /// Applies a change; returns once it is committed.
    pub(super) async fn commit<C: Change>(&self, change: C) -> Result<C::Output, PortError> {
        let (reply, committed) = oneshot::channel();
        let job = Pending { change, output: None, reply };
        let stopped = || PortError::new(anyhow::anyhow!("the store's writer has stopped"));
        self.0.send(Box::new(job)).await.map_err(|_| stopped())?;
        committed.await.unwrap_or_else(|_| Err(stopped()))
    }
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

fn finish_all(group: &mut Vec<Box<dyn Job>>, error: sqlx::Error) {
    let error = PortError::new(error);
    for job in group.drain(..) {
        job.finish(Err(error.clone()));
    }
}

/// Applies all in one transaction; an error rolls all of them back.
async fn commit(db: &Database, group: &mut [Box<dyn Job>]) -> sqlx::Result<()> {
    let mut transaction = db.write().await?;
    for job in group {
        job.apply(&mut transaction).await?;
    }
    transaction.commit().await
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
}
