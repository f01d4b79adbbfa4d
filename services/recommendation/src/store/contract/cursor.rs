//! The contract of [`CursorStore`].

use std::sync::Arc;

use tourin_shared_events::bus::feed::{Cursor, CursorStore};

use super::contract;

type Store = Arc<dyn CursorStore>;

contract!(cursor on on_mongodb:
    a_cursor_is_kept_for_each_queue,
);

async fn a_cursor_is_kept_for_each_queue(store: Store) {
    assert_eq!(store.load("queue").await.unwrap(), None);
    let first = Cursor { log_id: "first".into(), seq: 7 };
    let other = Cursor { log_id: "first".into(), seq: 3 };
    store.save("queue", &first).await.unwrap();
    store.save("other", &other).await.unwrap();
    assert_eq!(store.load("queue").await.unwrap(), Some(first));
    let anew = Cursor { log_id: "second".into(), seq: 1 };
    store.save("queue", &anew).await.unwrap();
    assert_eq!(store.load("queue").await.unwrap(), Some(anew));
    assert_eq!(store.load("other").await.unwrap(), Some(other));
}
