//! The queue of signals, and the events that were received.

use super::at;
use crate::app::signals::{SignalCursor, SignalStore};
use crate::domain::token::SessionId;

pub(super) async fn a_session_is_queued_once_whoever_reads_the_log(store: impl SignalStore) {
    let start = store.cursor().await.unwrap();
    assert_eq!(start, SignalCursor::default());
    let next = SignalCursor { log_id: "log".to_owned(), position: 2 };
    let sessions: Vec<_> = (0..2).map(|_| SessionId::new()).collect();
    let queueing = || store.queue((&start, &next), &sessions, 10, at(0));
    let (one, other) = tokio::join!(queueing(), queueing());
    let mut outcomes = [one.unwrap(), other.unwrap()];
    outcomes.sort_unstable();
    assert_eq!(outcomes, [None, Some(0)], "one of two processes queues them");
    assert_eq!(store.cursor().await.unwrap(), next);
    let claimed = store.claim(10, at(0), at(30)).await.unwrap();
    assert_eq!(claimed.iter().map(|signal| signal.session).collect::<Vec<_>>(), sessions);

    let further = SignalCursor { log_id: "log".to_owned(), position: 9 };
    let more: Vec<_> = (0..5).map(|_| SessionId::new()).collect();
    let left_out = store.queue((&next, &further), &more, 4, at(0)).await.unwrap();
    assert_eq!(left_out, Some(3), "the queue is bounded");
}

pub(super) async fn a_signal_is_due_again_until_it_is_removed(store: impl SignalStore) {
    let next = SignalCursor { log_id: "log".to_owned(), position: 1 };
    let session = SessionId::new();
    let queued = store.queue((&SignalCursor::default(), &next), &[session], 10, at(0)).await;
    assert_eq!(queued.unwrap(), Some(0));
    let first = store.claim(10, at(0), at(30)).await.unwrap();
    assert_eq!((first.len(), first[0].session, first[0].attempts), (1, session, 0));
    assert_eq!(first[0].noted_at, at(0));
    assert_eq!(store.claim(10, at(29), at(60)).await.unwrap(), [], "another process has it");
    // That process was killed.
    let again = store.claim(10, at(30), at(60)).await.unwrap();
    assert_eq!((&again[0].jti, again[0].attempts), (&first[0].jti, 1));
    store.postpone(again[0].seq, at(100)).await.unwrap();
    assert_eq!(store.claim(10, at(99), at(130)).await.unwrap(), []);
    assert_eq!(store.prune_signals(at(-1), at(99)).await.unwrap(), (0, 1));
    let third = store.claim(10, at(100), at(130)).await.unwrap();
    store.remove(third[0].seq).await.unwrap();
    assert_eq!(store.claim(10, at(1_000), at(1_030)).await.unwrap(), []);

    let last = SignalCursor { position: 2, ..next.clone() };
    store.queue((&next, &last), &[session], 10, at(1_000)).await.unwrap();
    assert_eq!(store.prune_signals(at(1_000), at(1_000)).await.unwrap(), (1, 0), "too old");
}

pub(super) async fn an_event_is_known_as_long_as_it_could_be_repeated(store: impl SignalStore) {
    let (one, other) = ([1; 32], [2; 32]);
    assert!(!store.is_received(&one).await.unwrap());
    for _ in 0..2 {
        store.note_received(&one, at(10)).await.unwrap();
    }
    assert!(store.is_received(&one).await.unwrap() && !store.is_received(&other).await.unwrap());
    store.prune_signals(at(0), at(9)).await.unwrap();
    assert!(store.is_received(&one).await.unwrap());
    store.prune_signals(at(0), at(10)).await.unwrap();
    assert!(!store.is_received(&one).await.unwrap());
}
