//! What every cursor store must do, and one in memory for tests.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;

use super::{Cursor, CursorStore};

/// A queue starts without a cursor; the last one saved is the one loaded; queues do not mix.
pub async fn keeps_the_last_cursor_of_each_queue(store: &impl CursorStore) {
    let cursor = |log_id: &str, seq| Cursor { log_id: log_id.to_owned(), seq };
    assert_eq!(store.load("a").await.expect("load"), None);
    store.save("a", &cursor("log", 7)).await.expect("save");
    store.save("b", &cursor("log", u64::from(u32::MAX))).await.expect("save");
    // Another log, a lower number: the store does not judge.
    store.save("a", &cursor("other", 3)).await.expect("save");
    assert_eq!(store.load("a").await.expect("load"), Some(cursor("other", 3)));
    assert_eq!(store.load("b").await.expect("load"), Some(cursor("log", u64::from(u32::MAX))));
}

/// Keeps cursors for as long as it lives.
#[derive(Debug, Default)]
pub struct MemoryCursors(Mutex<BTreeMap<String, Cursor>>);

#[async_trait]
impl CursorStore for MemoryCursors {
    async fn load(&self, queue: &str) -> anyhow::Result<Option<Cursor>> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).get(queue).cloned())
    }

    async fn save(&self, queue: &str, cursor: &Cursor) -> anyhow::Result<()> {
        let mut cursors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cursors.insert(queue.to_owned(), cursor.clone());
        Ok(())
    }
}
