//! The stream of revocations as the numbered log that core serves over HTTP, for gateways without
//! access to Redis.

use chrono::{DateTime, Utc};

use super::operations::time;
use super::{RedisSessions, malformed};
use crate::app::StoreError;
use crate::app::revocations::{Revocation, RevocationPage};
use crate::app::session_store::PRUNED_PER_PASS;
use crate::domain::token::SessionId;

/// A position is an entry's time in milliseconds, and this many bits for its number within the
/// millisecond: four million entries per millisecond, and times until the year 2109.
const NUMBER_BITS: u32 = 22;
const NUMBERS: u64 = 1 << NUMBER_BITS;
/// Most entries that one script of the pruner removes, so that it does not block Redis for long.
const PRUNED_AT_ONCE: u64 = 1_000;

/// An entry as Redis returns it: its id, then alternating fields and values.
type RawEntry = (String, Vec<String>);

impl RedisSessions {
    pub(super) async fn page_after(
        &self,
        after: u64,
        limit: u32,
        now: DateTime<Utc>,
    ) -> Result<RevocationPage, StoreError> {
        let mut page = RevocationPage { log_id: String::new(), next: after, entries: Vec::new() };
        let mut seq = after;
        // The loop skips expired entries. The pruner removes them soon, so there are few rounds.
        loop {
            let mut call = self.call(&self.scripts.page);
            call.arg(format!("({}-{}", seq / NUMBERS, seq % NUMBERS)).arg(limit);
            let (log_id, raw): (String, Vec<RawEntry>) = self.run("page", &call).await?;
            page.log_id = log_id;
            let is_end = raw.len() < usize::try_from(limit).unwrap_or(usize::MAX);
            for entry in raw {
                let entry = read(&entry)?;
                seq = entry.seq;
                if entry.until > now {
                    page.entries.push(entry);
                }
            }
            if is_end || !page.entries.is_empty() {
                page.next = page.entries.last().map_or(after, |last| last.seq);
                return Ok(page);
            }
        }
    }

    pub(super) async fn append_canary(
        &self,
        canary: SessionId,
        until: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let mut call = self.call(&self.scripts.canary);
        call.arg(canary.to_string()).arg(until.timestamp_micros());
        self.run("canary", &call).await
    }

    pub(super) async fn invalidate(
        &self,
        tags: &[String],
        until: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let mut call = self.call(&self.scripts.invalidate);
        call.arg(until.timestamp_micros());
        for tag in tags {
            call.arg(SessionId::of_no_session().to_string()).arg(tag);
        }
        self.run("invalidate", &call).await
    }

    pub(super) async fn prune_expired(&self, now: DateTime<Utc>) -> Result<u64, StoreError> {
        let mut pruned = 0;
        loop {
            let mut call = self.call(&self.scripts.prune);
            call.arg(now.timestamp_micros()).arg(PRUNED_AT_ONCE);
            let batch: u64 = self.run("prune", &call).await?;
            pruned += batch;
            if batch < PRUNED_AT_ONCE || pruned >= PRUNED_PER_PASS.unsigned_abs() {
                return Ok(pruned);
            }
        }
    }
}

fn read((id, fields): &RawEntry) -> Result<Revocation, StoreError> {
    let field = |name: &str| {
        let mut pairs = fields.chunks_exact(2);
        pairs.find(|pair| pair[0] == name).map(|pair| pair[1].as_str())
    };
    let session = field("session").and_then(SessionId::parse);
    let until = field("until").ok_or_else(|| malformed("a revocation"))?;
    Ok(Revocation {
        seq: number(id).ok_or_else(|| malformed("a revocation's id"))?,
        session: session.ok_or_else(|| malformed("a revocation's session"))?,
        invalidates: field("invalidate").map(str::to_owned),
        until: time(until.as_bytes())?,
    })
}

fn number(id: &str) -> Option<u64> {
    let (ms, number) = id.split_once('-')?;
    let (ms, number): (u64, u64) = (ms.parse().ok()?, number.parse().ok()?);
    Some(ms.saturating_mul(NUMBERS).saturating_add(number.min(NUMBERS - 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_in_the_order_of_ids() {
        let ids = ["0-1", "1-0", "1-9", "1-10", "1800000000000-0", "1800000000000-4194303"];
        let seqs: Vec<_> = ids.iter().map(|id| number(id).unwrap()).collect();
        assert!(seqs.is_sorted_by(|one, other| one < other), "{seqs:?}");
        let last = seqs[5];
        assert_eq!(format!("{}-{}", last / NUMBERS, last % NUMBERS), ids[5]);
        assert_eq!(number("nonsense"), None);
    }
}
