//! The relay at work.

use std::collections::HashSet;

use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Relay;
use super::unroutable::Unroutable;
use crate::bus::{LaneKey, Lanes, PublishError};
use crate::consumer::count;
use crate::outbox::Pending;

struct Queued {
    pending: Pending,
    failures: u32,
}

type Published = (LaneKey, Queued, Result<(), PublishError>);

/// The state of a relay at work.
pub(super) struct Running<'a> {
    relay: &'a Relay,
    holder: String,
    lanes: Lanes<Queued>,
    /// Sequence numbers read and not yet marked: waiting, in flight or confirmed. Bounded by `max_buffered`.
    known: HashSet<u64>,
    /// Keys that are passed over for now.
    unroutable: Unroutable,
    /// Confirmed by the bus, not yet marked.
    confirmed: Vec<u64>,
    in_flight: FuturesUnordered<BoxFuture<'a, Published>>,
    /// Everything pending up to here was read.
    cursor: u64,
    /// There may be more above the cursor.
    more: bool,
    /// Everything was read since the cursor last started from zero.
    at_end: bool,
    /// The next page is read without waiting for anything.
    read_on: bool,
    next_poll: Instant,
    next_rescan: Instant,
    renew_lease_at: Option<Instant>,
    /// Another relay held the lease when last asked.
    standby: bool,
    /// Nothing is published before this: the bus is out of reach.
    bus_back_at: Instant,
    bus_failures: u32,
    /// The store is left alone until this.
    store_back_at: Instant,
    store_failures: u32,
}

impl<'a> Running<'a> {
    pub(super) fn new(relay: &'a Relay) -> Self {
        let now = Instant::now();
        Self {
            relay,
            holder: Uuid::now_v7().to_string(),
            lanes: Lanes::default(),
            known: HashSet::new(),
            unroutable: Unroutable::default(),
            confirmed: Vec::new(),
            in_flight: FuturesUnordered::new(),
            cursor: 0,
            more: true,
            at_end: false,
            read_on: false,
            next_poll: now,
            next_rescan: now,
            renew_lease_at: None,
            standby: false,
            bus_back_at: now,
            bus_failures: 0,
            store_back_at: now,
            store_failures: 0,
        }
    }

    pub(super) async fn run(mut self, shutdown: &CancellationToken) {
        let mut news = self.relay.wake.listen();
        while !shutdown.is_cancelled() {
            self.mark().await;
            self.read().await;
            if self.holds_lease().await {
                self.publish();
            }
            let next = self.next_wake();
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(published) = self.in_flight.next(), if !self.in_flight.is_empty() => {
                    self.conclude(published);
                    // What else was confirmed meanwhile is marked in the same transaction.
                    while let Some(Some(published)) = self.in_flight.next().now_or_never() {
                        self.conclude(published);
                    }
                }
                () = news.notified() => self.more = true,
                () = sleep_until(next) => {}
            }
        }
        self.stop().await;
    }

    /// Reads what is new, as far as there is room for it.
    async fn read(&mut self) {
        let now = Instant::now();
        if now >= self.next_poll {
            self.more = true;
            self.next_poll = now + self.relay.settings.poll_interval;
        }
        let passing_over = match self.unroutable.retry_at() {
            // Not before all else was read: unroutable rows would be tried again and again, and those after them never.
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
        if !passing_over && (now >= self.next_rescan || self.known.is_empty()) {
            self.start_over(now);
        }
        self.read_on = false;
        let Some(room) = self.room().filter(|_| self.more && now >= self.store_back_at) else {
            return;
        };
        // From the start on, the events already known come along again.
        let known = if self.cursor == 0 { self.known.len() } else { 0 };
        let limit = u32::try_from(room + known).unwrap_or(u32::MAX);
        let read = self.relay.store.pending(self.cursor, limit).await;
        let Some(rows) = self.store_result(read, "outbox not read") else {
            return;
        };
        self.more = rows.len() >= usize::try_from(limit).unwrap_or(usize::MAX);
        self.at_end |= !self.more;
        let (before, read) = (self.known.len(), rows.len());
        for pending in rows {
            self.cursor = self.cursor.max(pending.seq);
            let held = self.unroutable.holds(&pending.event.ordering_key);
            if !held && self.known.insert(pending.seq) {
                let key = pending.event.ordering_key.clone();
                self.lanes.push(Some(&key), Queued { pending, failures: 0 });
            }
        }
        // Rows that were passed over may have left room for what comes after them.
        let passed_over = self.unroutable.keys() > 0 && self.known.len() - before < read;
        self.read_on = self.more && passed_over && self.room().is_some();
    }

    /// How many rows there is room for; `None` when that is not worth a query.
    fn room(&self) -> Option<usize> {
        // Standing by, one row is enough to see that there is work.
        let max = if self.standby { 1 } else { self.relay.settings.max_buffered };
        let room = max.saturating_sub(self.known.len());
        // A few rows at a time are not worth it, unless nothing else is there.
        let worthwhile = room > max / 16 || (room > 0 && self.known.is_empty());
        (worthwhile && !self.unroutable.is_full()).then_some(room)
    }

    /// Reads from the oldest row that waits, next.
    fn start_over(&mut self, now: Instant) {
        self.cursor = 0;
        self.at_end = false;
        self.next_rescan = now + self.relay.settings.rescan_interval;
    }

    /// Whether this relay may publish. Without anything to publish it does not ask, so an idle outbox is not written to.
    async fn holds_lease(&mut self) -> bool {
        let now = Instant::now();
        if self.lanes.waiting() == 0 && self.in_flight.is_empty() {
            return false;
        }
        if self.renew_lease_at.is_some_and(|at| now < at) {
            return true;
        }
        if now < self.store_back_at {
            return false;
        }
        let wall = (self.relay.clock)();
        let lease = self.relay.settings.lease;
        let claim = self.relay.store.claim(&self.holder, wall, wall + lease).await;
        match self.store_result(claim, "outbox not claimed") {
            Some(true) => {
                if std::mem::take(&mut self.standby) {
                    self.more = true;
                }
                self.renew_lease_at = Some(now + lease / 2);
                true
            }
            Some(false) => {
                self.renew_lease_at = None;
                self.standby = true;
                if self.in_flight.is_empty() {
                    self.forget();
                }
                false
            }
            None => false,
        }
    }

    /// Another relay is at work: what was read here is soon out of date.
    fn forget(&mut self) {
        self.lanes = Lanes::default();
        self.unroutable = Unroutable::default();
        self.known = self.confirmed.iter().copied().collect();
        self.cursor = 0;
        self.more = false;
    }

    fn publish(&mut self) {
        let now = Instant::now();
        if now < self.bus_back_at {
            return;
        }
        while self.in_flight.len() < self.relay.settings.max_in_flight {
            let Some((key, queued)) = self.lanes.take(now) else {
                return;
            };
            let publisher = &self.relay.publisher;
            let limit = self.relay.settings.confirm_timeout;
            let publishing = async move {
                let publishing = publisher.publish(vec![queued.pending.event.clone()]);
                let result = match timeout(limit, publishing).await {
                    Ok(results) => results.into_iter().next().unwrap_or_else(|| {
                        Err(PublishError::Rejected("the bus gave no result".to_owned()))
                    }),
                    Err(_elapsed) => {
                        Err(PublishError::Rejected(format!("not confirmed within {limit:?}")))
                    }
                };
                (key, queued, result)
            };
            self.in_flight.push(publishing.boxed());
        }
    }

    fn conclude(&mut self, (key, mut queued, result): Published) {
        let now = Instant::now();
        let backoff = self.relay.settings.backoff;
        let stats = &self.relay.stats;
        let Err(error) = result else {
            count(&stats.published);
            self.bus_failures = 0;
            self.unroutable.confirmed(queued.pending.seq);
            self.confirmed.push(queued.pending.seq);
            self.lanes.done(&key);
            return;
        };
        count(&stats.failed);
        queued.failures = queued.failures.saturating_add(1);
        let Pending { seq, event } = &queued.pending;
        tracing::debug!(seq, event = %event.envelope.id, routing_key = event.routing_key, %error, "event not published");
        match error {
            PublishError::Unavailable(_) => {
                // Those in flight together fail together; that is one failure of the bus, not many.
                if now >= self.bus_back_at {
                    self.bus_failures = self.bus_failures.saturating_add(1);
                    self.bus_back_at = now + backoff.after(self.bus_failures);
                    tracing::warn!(%error, failures = self.bus_failures, "bus out of reach");
                }
                self.lanes.again(&key, queued, self.bus_back_at);
            }
            PublishError::Unroutable => {
                count(&stats.unroutable);
                self.unroutable.hold(&event.ordering_key, *seq, now, &backoff);
                if let Some(held) = self.unroutable.warning(now) {
                    tracing::warn!(
                        seq,
                        routing_key = event.routing_key,
                        keys = self.unroutable.keys(),
                        seconds = held.as_secs(),
                        "events stay unroutable: no queue is declared for them"
                    );
                }
                // They are read again in the next round.
                self.known.remove(seq);
                for behind in self.lanes.drop_lane(&key) {
                    self.known.remove(&behind.pending.seq);
                }
            }
            PublishError::Rejected(_) => {
                tracing::warn!(seq, event = %event.envelope.id, %error, failures = queued.failures, "event refused");
                let wait = backoff.after(queued.failures);
                self.lanes.again(&key, queued, now + wait);
            }
        }
    }

    /// Marks what was confirmed, all of it in one transaction.
    ///
    /// Awaited here and not beside the other futures: a transaction that nobody polls would keep the store's one writer
    /// from everybody, this relay's own claims included.
    async fn mark(&mut self) {
        if self.confirmed.is_empty() || Instant::now() < self.store_back_at {
            return;
        }
        let now = (self.relay.clock)();
        let marked = self.relay.store.mark_published(&self.confirmed, now).await;
        if self.store_result(marked, "confirmations not marked").is_some() {
            for seq in self.confirmed.drain(..) {
                self.known.remove(&seq);
            }
            self.more = true;
        }
    }

    fn store_result<T>(&mut self, result: anyhow::Result<T>, failure: &str) -> Option<T> {
        match result {
            Ok(value) => {
                self.store_failures = 0;
                Some(value)
            }
            Err(error) => {
                count(&self.relay.stats.store_failures);
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
        let mut next = self.next_poll;
        // A retry that is due but cannot go (the bus is out of reach, too many in flight) must not make this spin.
        if let Some(due) = self.lanes.next_due().filter(|due| *due > now) {
            next = next.min(due);
        }
        if self.bus_back_at > now {
            next = next.min(self.bus_back_at);
        }
        // One that is due but has to wait for the reading to end is looked at after each page.
        if let Some(due) = self.unroutable.retry_at().filter(|due| *due > now) {
            next = next.min(due);
        }
        next.max(now)
    }

    async fn stop(mut self) {
        let settings = &self.relay.settings;
        let drain = settings.drain_timeout;
        let drained = timeout(drain, async {
            while let Some(published) = self.in_flight.next().await {
                self.conclude(published);
            }
        });
        if drained.await.is_err() {
            tracing::debug!(
                events = self.in_flight.len(),
                "left unconfirmed; they will be published again"
            );
        }
        let last = timeout(drain, async {
            self.relay.store.mark_published(&self.confirmed, (self.relay.clock)()).await?;
            self.relay.store.release(&self.holder).await
        });
        match last.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = format!("{error:#}"), "last confirmations not marked");
            }
            Err(_elapsed) => tracing::warn!("last confirmations not marked in time"),
        }
    }
}
