//! A running relay.

mod outcome;

use std::collections::HashSet;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::outcome::{Published, publish};
use super::Relay;
use super::held::{Held, InFlight, Queued};
use super::unroutable::Unroutable;
use crate::outbox::shard::all_shards;
use crate::outbox::{Refusal, Shard};
use crate::trace::EventSpan;

/// How long a lone relay stays idle before it releases its shards. After that, nothing writes to an idle outbox.
const IDLE_AFTER: Duration = Duration::from_secs(10);

/// The state of a running relay.
pub(super) struct Running<'a> {
    relay: &'a Relay,
    holder: String,
    held: Held,
    /// Keys that are skipped for now.
    unroutable: Unroutable,
    /// Confirmed by the bus and not yet marked, and the time of the first of them.
    confirmed: Vec<(Shard, u64)>,
    confirmed_since: Option<Instant>,
    /// Returned by the bus and not yet recorded.
    refused: Vec<(Shard, Refusal)>,
    publishing: FuturesUnordered<BoxFuture<'a, Published>>,
    /// Events in them.
    in_flight: usize,
    /// All pending rows up to this number were read.
    cursor: u64,
    /// There may be more rows above the cursor.
    more: bool,
    /// Everything was read since the cursor last started from zero.
    at_end: bool,
    /// Read the next page without waiting.
    read_on: bool,
    next_poll: Instant,
    next_rescan: Instant,
    /// When to renew the leases; `None` while there is nothing to do.
    next_claim: Option<Instant>,
    /// The time of the last work.
    worked_at: Instant,
    /// Running relays, by the last claim.
    relays: usize,
    /// Nothing is published before this time: the bus is unreachable.
    bus_back_at: Instant,
    bus_failures: u32,
    /// The store is not used before this time.
    store_back_at: Instant,
    store_failures: u32,
}

impl<'a> Running<'a> {
    pub(super) fn new(relay: &'a Relay) -> Self {
        let now = Instant::now();
        Self {
            relay,
            holder: Uuid::now_v7().to_string(),
            held: Held::default(),
            unroutable: Unroutable::default(),
            confirmed: Vec::new(),
            confirmed_since: None,
            refused: Vec::new(),
            publishing: FuturesUnordered::new(),
            in_flight: 0,
            cursor: 0,
            more: true,
            at_end: false,
            read_on: false,
            next_poll: now,
            next_rescan: now,
            next_claim: None,
            worked_at: now,
            relays: 0,
            bus_back_at: now,
            bus_failures: 0,
            store_back_at: now,
            store_failures: 0,
        }
    }

    pub(super) async fn run(mut self, shutdown: &CancellationToken) {
        let mut news = self.relay.wake.listen();
        while !shutdown.is_cancelled() {
            self.record().await;
            self.claim().await;
            self.read().await;
            self.publish();
            let next = self.next_wake();
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(published) = self.publishing.next(), if !self.publishing.is_empty() => {
                    self.conclude(published);
                    // Other confirmed rows are marked in the same transaction.
                    while let Some(Some(published)) = self.publishing.next().now_or_never() {
                        self.conclude(published);
                    }
                }
                () = news.notified() => self.more = true,
                () = sleep_until(next) => {}
            }
        }
        self.stop().await;
    }

    /// Marks confirmed rows, all in one transaction, once they are enough or old enough.
    ///
    /// Awaited here and not beside the other futures: a transaction that is not polled would block the store's one
    /// writer, this relay's own claims included.
    async fn record(&mut self) {
        let now = Instant::now();
        if now < self.store_back_at {
            return;
        }
        let settings = &self.relay.settings;
        let due = self.confirmed_since.is_some_and(|since| now >= since + settings.mark_delay);
        let leaving = self.held.to_release();
        let is_full = self.confirmed.len() >= settings.max_in_flight;
        if (due || is_full || !leaving.is_empty()) && self.mark().await.is_none() {
            return;
        }
        if self.record_refusals().await.is_none() {
            return;
        }
        if !leaving.is_empty() {
            let released = self.relay.store.release(&self.holder, &leaving).await;
            if self.store_result(released, "shards not released").is_some() {
                self.held.forget(&leaving);
            }
        }
    }

    async fn mark(&mut self) -> Option<()> {
        if self.confirmed.is_empty() {
            return Some(());
        }
        let mut seqs: Vec<u64> = self.confirmed.iter().map(|(_, seq)| *seq).collect();
        // In a fixed order, so that two relays do not deadlock.
        seqs.sort_unstable();
        let marked = self.relay.store.mark_published(&seqs, (self.relay.clock)()).await;
        self.store_result(marked, "confirmations not marked")?;
        for (shard, seq) in std::mem::take(&mut self.confirmed) {
            self.held.marked(shard, seq);
        }
        self.confirmed_since = None;
        Some(())
    }

    async fn record_refusals(&mut self) -> Option<()> {
        if self.refused.is_empty() {
            return Some(());
        }
        let refusals: Vec<Refusal> = self.refused.iter().map(|(_, r)| r.clone()).collect();
        let recorded = self.relay.store.record_refusals(&refusals, (self.relay.clock)()).await;
        self.store_result(recorded, "refusals not recorded")?;
        for (shard, refusal) in std::mem::take(&mut self.refused) {
            if refusal.give_up {
                self.held.marked(shard, refusal.seq);
            }
        }
        Some(())
    }

    /// Registers this relay as running, renews its leases and takes its share.
    async fn claim(&mut self) {
        let now = Instant::now();
        let lost = self.held.drop_ended(now);
        if lost > 0 {
            tracing::warn!(shards = lost, "leases ended before they were renewed");
        }
        if self.next_claim.is_none_or(|at| now < at) || now < self.store_back_at {
            return;
        }
        let busy = self.in_flight > 0 || self.held.rows() > 0 || self.unroutable.keys() > 0;
        if busy {
            self.worked_at = now;
        }
        if self.relays <= 1 && now >= self.worked_at + IDLE_AFTER {
            self.rest().await;
            return;
        }
        let lease = self.relay.settings.lease;
        let claim = self.relay.store.claim(&self.holder, lease).await;
        let Some(claim) = self.store_result(claim, "outbox not claimed") else {
            return;
        };
        self.relays = claim.relays;
        self.unroutable.retain(&claim.shards);
        self.next_claim = Some(now + self.relay.settings.claim_interval());
        // Measured from before the call, so that the lease ends here no later than in the store.
        if self.held.claimed(&claim, now + lease) {
            self.start_over(now);
            self.more = true;
        }
        self.gauge();
    }

    /// Releases everything until there is work again.
    async fn rest(&mut self) {
        let left = self.relay.store.leave(&self.holder).await;
        if self.store_result(left, "shards not released").is_some() {
            self.held = Held::default();
            self.unroutable.retain(&[]);
            self.next_claim = None;
            self.gauge();
        }
    }

    fn gauge(&self) {
        self.relay.metrics.shards.set(i64::try_from(self.held.len()).unwrap_or(i64::MAX));
    }

    /// Without a shard, one row of any shard is enough to see that there is work.
    async fn look(&mut self) {
        self.more = false;
        let found = self.relay.store.pending(&all_shards(), 0, 1).await;
        if self.store_result(found, "outbox not read").is_some_and(|rows| !rows.is_empty()) {
            let now = Instant::now();
            self.worked_at = now;
            if self.next_claim.is_none() {
                self.next_claim = Some(now);
                self.claim().await;
            }
        }
    }

    /// Reads new rows, as far as there is room.
    async fn read(&mut self) {
        let now = Instant::now();
        if now >= self.next_poll {
            self.more = true;
            self.next_poll = now + self.relay.settings.poll_interval;
        }
        if self.held.len() == 0 && self.more && now >= self.store_back_at {
            self.look().await;
        }
        let shards = self.held.to_read();
        if shards.is_empty() {
            return;
        }
        self.start_new_round(now);
        self.read_on = false;
        let Some(room) = self.room().filter(|_| self.more && now >= self.store_back_at) else {
            return;
        };
        // From the start on, the known rows are read again.
        let from_start = self.cursor == 0;
        let known = if from_start { self.held.rows() } else { 0 };
        let limit = u32::try_from(room + known).unwrap_or(u32::MAX);
        let read = self.relay.store.pending(&shards, self.cursor, limit).await;
        let Some(rows) = self.store_result(read, "outbox not read") else {
            return;
        };
        self.more = rows.len() >= usize::try_from(limit).unwrap_or(usize::MAX);
        self.at_end |= !self.more;
        // Of a shard that was lost and regained, the rows confirmed meanwhile are unknown.
        let confirmed: HashSet<u64> = match from_start {
            true => self.confirmed.iter().map(|(_, seq)| *seq).collect(),
            false => HashSet::new(),
        };
        let (mut added, read) = (0, rows.len());
        for pending in rows {
            self.cursor = self.cursor.max(pending.seq);
            let skipped = self.unroutable.holds(&pending.event.ordering_key)
                || confirmed.contains(&pending.seq);
            if !skipped && self.held.push(pending) {
                added += 1;
            }
        }
        if added > 0 {
            self.worked_at = now;
        }
        // Skipped rows may have left room for later ones.
        let passed_over = self.unroutable.keys() > 0 && added < read;
        self.read_on = self.more && passed_over && self.room().is_some();
    }

    /// Starts again from the oldest row, when it is time.
    fn start_new_round(&mut self, now: Instant) {
        let passing_over = match self.unroutable.retry_at() {
            // Not before everything else was read: unroutable rows would be retried again and again, and later rows
            // never.
            Some(due) if now < due => true,
            Some(due) => {
                let late = now >= due + self.relay.settings.rescan_interval;
                let next =
                    self.at_end || self.unroutable.is_full() || (late && self.room().is_none());
                if next {
                    self.unroutable.next_round();
                    self.start_over(now);
                    self.more = true;
                }
                !next
            }
            None => false,
        };
        if !passing_over && now >= self.next_rescan {
            self.start_over(now);
        }
    }

    /// The number of rows there is room for; `None` when it is not worth a query.
    fn room(&self) -> Option<usize> {
        let max = self.relay.settings.max_buffered;
        let known = self.held.rows();
        let room = max.saturating_sub(known);
        // A few rows are not worth a query, unless nothing else is held.
        let worthwhile = room > max / 4 || (room > 0 && known == 0);
        (worthwhile && !self.unroutable.is_full()).then_some(room)
    }

    /// The next read starts from the oldest waiting row.
    fn start_over(&mut self, now: Instant) {
        self.cursor = 0;
        self.at_end = false;
        self.next_rescan = now + self.relay.settings.rescan_interval;
    }

    fn publish(&mut self) {
        let now = Instant::now();
        if now < self.bus_back_at {
            return;
        }
        let settings = &self.relay.settings;
        let safe = now + settings.lease / 4;
        let batch_size = self.relay.publisher.batch_size().max(1);
        while self.in_flight < settings.max_in_flight {
            let room = batch_size.min(settings.max_in_flight - self.in_flight);
            let mut batch = Vec::new();
            while batch.len() < room
                && let Some(mut in_flight) = self.held.take(now, safe)
            {
                self.trace(&mut in_flight);
                batch.push(in_flight);
            }
            if batch.is_empty() {
                return;
            }
            self.in_flight += batch.len();
            self.publishing.push(publish(self.relay, batch).boxed());
        }
    }

    /// The event's span, from its first attempt on.
    fn trace(&mut self, in_flight: &mut InFlight) {
        let (queued, unroutable) = (&mut in_flight.queued, &mut self.unroutable);
        let Queued { pending, span, .. } = queued;
        span.get_or_insert_with(|| {
            unroutable.resume(pending.seq).unwrap_or_else(|| {
                EventSpan::producer(&pending.event, &self.relay.publisher.messaging_system())
            })
        });
    }

    fn store_result<T>(&mut self, result: anyhow::Result<T>, failure: &str) -> Option<T> {
        match result {
            Ok(value) => {
                self.store_failures = 0;
                Some(value)
            }
            Err(error) => {
                self.relay.metrics.store_failures.inc();
                self.store_failures = self.store_failures.saturating_add(1);
                let wait = self.relay.settings.backoff.after(self.store_failures);
                self.store_back_at = Instant::now() + wait;
                tracing::warn!(
                    error = format!("{error:#}"),
                    failures = self.store_failures,
                    "{failure}"
                );
                None
            }
        }
    }

    fn next_wake(&self) -> Instant {
        let now = Instant::now();
        if self.read_on {
            return now;
        }
        let mark_at = self.confirmed_since.map(|since| since + self.relay.settings.mark_delay);
        let unrecorded = !self.refused.is_empty() || !self.held.to_release().is_empty();
        let record_at = if unrecorded { Some(now) } else { mark_at };
        // A due row that cannot go (bus unreachable, too many in flight) must not make this spin.
        let times = [
            record_at.map(|at| at.max(self.store_back_at)),
            self.next_claim.map(|at| at.max(self.store_back_at)),
            self.held.next_due(now),
            (self.bus_back_at > now).then_some(self.bus_back_at),
            // A due row that waits for the end of reading is checked after each page.
            self.unroutable.retry_at().filter(|due| *due > now),
        ];
        times.into_iter().flatten().fold(self.next_poll, Instant::min).max(now)
    }

    async fn stop(mut self) {
        let drain = self.relay.settings.drain_timeout;
        // What was committed before the stop still goes.
        self.more = true;
        let drained = timeout(drain, async {
            loop {
                self.record().await;
                self.read_on = false;
                self.read().await;
                self.publish();
                match self.publishing.next().await {
                    Some(published) => self.conclude(published),
                    None if self.read_on => {}
                    // What is marked leaves room for more.
                    None if self.more && !self.confirmed.is_empty() => {
                        if self.mark().await.is_none() {
                            break;
                        }
                    }
                    None => break,
                }
            }
        });
        if drained.await.is_err() {
            tracing::debug!(
                events = self.in_flight,
                "left unconfirmed; they will be published again"
            );
        }
        let last = timeout(drain, async {
            self.mark().await;
            self.record_refusals().await;
            self.relay.store.leave(&self.holder).await
        });
        match last.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = format!("{error:#}"), "shards not released");
            }
            Err(_elapsed) => tracing::warn!("last confirmations not marked in time"),
        }
    }
}
