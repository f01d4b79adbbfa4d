//! Conversion between the outbox's rows and events.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::Serialize;
use sqlx::Row as _;
use uuid::Uuid;

use super::{Row, from_micros};
use crate::envelope::Envelope;
use crate::events::Outgoing;
use crate::outbox::Stored;
use crate::outbox::operator::state_of;
use crate::outbox::versions::Versions;

/// Rows marked or deleted per transaction, which bounds the time of its locks.
pub(super) const ROWS_PER_CHANGE: usize = 1_000;

/// The columns for [`stored`].
pub(super) const STORED: &str = "seq, event_id, type, exchange, routing_key, ordering_key, shard, occurred_at, recorded_at, \
                       published_at, rejected_at, attempts, last_error";

pub(super) fn stored(row: &Row) -> anyhow::Result<Stored> {
    let time = |name: &str| row.try_get::<Option<i64>, _>(name);
    let (published_at, rejected_at) = (time("published_at")?, time("rejected_at")?);
    let seq = unsigned(row.try_get("seq")?);
    Ok(Stored {
        seq,
        event_id: Uuid::parse_str(row.try_get("event_id")?)
            .with_context(|| format!("the event id of outbox row {seq}"))?,
        r#type: row.try_get("type")?,
        exchange: row.try_get("exchange")?,
        ordering_key: row.try_get("ordering_key")?,
        shard: row.try_get("shard")?,
        state: state_of(published_at, rejected_at),
        occurred_at: from_micros(row.try_get("occurred_at")?)?,
        recorded_at: from_micros(row.try_get("recorded_at")?)?,
        published_at: published_at.map(from_micros).transpose()?,
        rejected_at: rejected_at.map(from_micros).transpose()?,
        attempts: row.try_get("attempts")?,
        last_error: row.try_get("last_error")?,
    })
}

pub(super) fn outgoing(row: &Row, versions: Versions) -> anyhow::Result<Outgoing> {
    let id: &str = row.try_get("event_id")?;
    let data: &str = row.try_get("data")?;
    let headers: &str = row.try_get("headers")?;
    let mut data = serde_json::from_str(data)?;
    versions.stamp(row.try_get("seq")?, &mut data);
    Ok(Outgoing {
        envelope: Envelope {
            id: Uuid::parse_str(id)?,
            r#type: row.try_get("type")?,
            timestamp: from_micros(row.try_get("occurred_at")?)?,
            data,
        },
        exchange: row.try_get("exchange")?,
        routing_key: row.try_get("routing_key")?,
        ordering_key: row.try_get("ordering_key")?,
        headers: serde_json::from_str::<BTreeMap<String, String>>(headers)?,
    })
}

pub(super) fn signed(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(seq: i64) -> u64 {
    u64::try_from(seq).unwrap_or(0)
}

/// A list as one bound value.
pub(super) fn json<T: Serialize>(list: &[T]) -> String {
    serde_json::to_string(list).expect("numbers and texts are JSON")
}
