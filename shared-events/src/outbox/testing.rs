//! What tests of services read in an outbox.

use super::{Filter, OutboxStore, State, Stored};
use crate::events::Outgoing;

/// All rows of the outbox, confirmed or not, in the order of their numbers; at most 10,000 of each state.
pub async fn recorded(store: &dyn OutboxStore) -> Vec<(Stored, Outgoing)> {
    let mut seqs = Vec::new();
    for state in [State::Pending, State::Rejected, State::Published] {
        let filter = Filter { state, after: 0, limit: 10_000 };
        seqs.extend(store.list(&filter).await.expect("a list").into_iter().map(|row| row.seq));
    }
    store.show(&seqs).await.expect("rows")
}
