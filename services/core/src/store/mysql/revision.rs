//! Asking whether the catalogue has changed, once for all who want to know at the same time.

use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use tourin_shared_events::mysql::Database;

pub(super) const REVISION: &str = "SELECT revision FROM catalogue WHERE id = 1";

/// A question that has not been sent yet; `None` is that there was no answer.
type Question = Shared<BoxFuture<'static, Option<i64>>>;

/// The catalogue's revision, read from the server at most once at a time. Clones share the reading.
#[derive(Clone)]
pub(super) struct Revision {
    db: Database,
    next: Arc<Mutex<Option<Question>>>,
    /// Held while a question is out.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Revision {
    pub(super) fn new(db: Database) -> Self {
        Self { db, next: Arc::default(), turn: Arc::default() }
    }

    /// The revision at some moment after this call: who calls while a question is out takes part in
    /// the next one, so that nobody is answered from before the own call. `None` when the server
    /// did not answer.
    pub(super) async fn now(&self) -> Option<i64> {
        let question = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            next.get_or_insert_with(|| self.clone().ask().boxed().shared()).clone()
        };
        question.await
    }

    async fn ask(self) -> Option<i64> {
        let _turn = self.turn.lock().await;
        // From here on it is too late to join.
        self.next.lock().unwrap_or_else(PoisonError::into_inner).take();
        let asked = sqlx::query_scalar(REVISION).fetch_one(self.db.reader()).await;
        asked.inspect_err(|error| tracing::debug!(%error, "the catalogue's revision")).ok()
    }
}
