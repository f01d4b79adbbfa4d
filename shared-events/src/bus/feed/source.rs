//! One queue's view of the log.

use std::sync::Arc;

use anyhow::Context as _;
use async_trait::async_trait;
use futures::future::{BoxFuture, FutureExt as _, OptionFuture};
use tokio::task::JoinError;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::queue::{Entry, Queue};
use super::{Cursor, Follower};
use crate::bus::replays::Replays;
use crate::bus::unsettled::{Tries, Unsettled};
use crate::bus::{Carrier, Delivery, DeliverySource, Settler, TopicPattern};
use crate::consumer::count;
use crate::outbox::FeedPage;

pub(super) struct Source {
    queue: Arc<Queue>,
    bindings: Vec<(String, TopicPattern)>,
    prefetch: usize,
    /// The log that is being read; empty before the first page.
    log_id: String,
    /// The log is another one: read it from its start as soon as what was read of the old one is settled.
    restart: Option<String>,
    saved: Cursor,
    fetching: Option<BoxFuture<'static, anyhow::Result<FeedPage>>>,
    /// A task of its own, because this is not polled while the consumer is busy, and a save that stands still would
    /// keep the store's writer from the very handlers that are waited for. Ends with the source.
    saving: Option<AbortOnDropHandle<(Cursor, anyhow::Result<()>)>>,
    replays: Replays,
    fetch_at: Instant,
    save_at: Instant,
    failures: u32,
}

impl Source {
    pub(super) fn new(
        queue: Arc<Queue>,
        prefetch: usize,
        bindings: Vec<(String, TopicPattern)>,
        cursor: Cursor,
    ) -> Self {
        let now = Instant::now();
        Self {
            replays: Replays::new(&queue.name, queue.follower.dead_letters.clone()),
            queue,
            bindings,
            prefetch,
            log_id: cursor.log_id.clone(),
            restart: None,
            saved: cursor,
            fetching: None,
            saving: None,
            fetch_at: now,
            save_at: now,
            failures: 0,
        }
    }

    fn follower(&self) -> &Follower {
        &self.queue.follower
    }

    /// The next delivery that may go, and when to look again if there is none.
    fn take(&self) -> Result<Delivery, Option<Instant>> {
        let mut state = self.queue.lock();
        if state.unsettled >= self.prefetch {
            return Err(None);
        }
        let Some((key, entry)) = state.lanes.take(Instant::now()) else {
            return Err(state.lanes.next_due());
        };
        state.unsettled += 1;
        drop(state);
        let event = &entry.event;
        Ok(Delivery {
            body: entry.body.clone(),
            exchange: event.exchange.clone(),
            routing_key: event.routing_key.clone(),
            ordering_key: Some(event.ordering_key.clone()),
            headers: event.headers.clone(),
            attempt: entry.tries.attempt,
            waits: entry.tries.waits,
            settler: Settler::new(Unsettled::new(self.queue.clone(), key, entry)),
        })
    }

    /// Begins over with the log that turned up, once nothing of the old one is outstanding.
    fn begin_over(&mut self) {
        if self.restart.is_none() {
            return;
        }
        let mut state = self.queue.lock();
        if state.outstanding.is_empty() {
            state.read = 0;
            drop(state);
            self.log_id = self.restart.take().unwrap_or_default();
        }
    }

    fn start_fetching(&mut self, now: Instant) {
        if self.fetching.is_some() || self.restart.is_some() || now < self.fetch_at {
            return;
        }
        let state = self.queue.lock();
        if state.lanes.waiting() >= self.follower().settings.max_buffered {
            return;
        }
        let after = state.read;
        drop(state);
        self.fetching = Some(fetch(self.queue.follower.clone(), after).boxed());
    }

    fn start_saving(&mut self, now: Instant) {
        if self.saving.is_some() || now < self.save_at {
            return;
        }
        let cursor = self.cursor();
        if self.log_id.is_empty() || self.restart.is_some() || cursor == self.saved {
            return;
        }
        let queue = self.queue.clone();
        let saving = async move {
            let result = queue.follower.cursors.save(&queue.name, &cursor).await;
            (cursor, result)
        };
        self.saving = Some(AbortOnDropHandle::new(tokio::spawn(saving)));
    }

    fn cursor(&self) -> Cursor {
        Cursor { log_id: self.log_id.clone(), seq: self.queue.lock().settled() }
    }

    fn fetched(&mut self, page: anyhow::Result<FeedPage>) {
        let page = match page {
            Ok(page) => page,
            Err(error) => {
                count(&self.follower().stats.failures);
                self.failures = self.failures.saturating_add(1);
                let wait = self.follower().settings.backoff.after(self.failures);
                self.fetch_at = Instant::now() + wait;
                let queue = &self.queue.name;
                if self.failures == 1 {
                    tracing::warn!(
                        queue,
                        error = format!("{error:#}"),
                        "events cannot be followed"
                    );
                } else {
                    tracing::debug!(
                        queue,
                        failures = self.failures,
                        error = format!("{error:#}"),
                        "events cannot be followed"
                    );
                }
                return;
            }
        };
        if self.failures > 0 {
            self.failures = 0;
            tracing::info!(queue = self.queue.name, "events are followed again");
        }
        count(&self.follower().stats.pages);
        let mut state = self.queue.lock();
        let asked = state.read;
        let another = !self.log_id.is_empty() && page.log_id != self.log_id;
        if another || page.next < asked {
            drop(state);
            count(&self.follower().stats.restarts);
            tracing::warn!(
                queue = self.queue.name,
                "another log, or one set back: reading it from its start"
            );
            self.restart = Some(page.log_id);
            return;
        }
        self.log_id = page.log_id;
        if page.pruned > asked {
            // A newcomer has not missed anything, he comes late; either way the start of the log is gone.
            count(&self.follower().stats.gaps);
            tracing::warn!(
                queue = self.queue.name,
                read = asked,
                deleted = page.pruned,
                "events were deleted before they were read"
            );
        }
        state.read = page.next;
        for event in page.events {
            let wanted = self.bindings.iter().any(|(exchange, pattern)| {
                *exchange == event.exchange && pattern.matches(&event.routing_key)
            });
            // Out of order or twice on a page: not as agreed, and dangerous to the cursor.
            if !wanted || event.seq <= asked || !state.outstanding.insert(event.seq) {
                continue;
            }
            count(&self.queue.follower.stats.events);
            let key = event.ordering_key.clone();
            let body = event.envelope.to_string().into();
            state
                .lanes
                .push(Some(&key), Entry { event, body, tries: Tries::at(1), replay_of: None });
        }
    }

    fn save_finished(&mut self, saved: Result<(Cursor, anyhow::Result<()>), JoinError>) {
        self.save_at = Instant::now() + self.follower().settings.save_interval;
        let error = match saved {
            Ok((cursor, Ok(()))) => {
                self.saved = cursor;
                return;
            }
            Ok((_, Err(error))) => error,
            Err(panic) => panic.into(),
        };
        let error = format!("{error:#}");
        tracing::warn!(queue = self.queue.name, error, "cursor not saved");
    }

    /// When something may be to do that nobody signals.
    fn next_wake(&self, now: Instant, due: Option<Instant>) -> Option<Instant> {
        let fetch = (self.fetching.is_none() && self.fetch_at > now).then_some(self.fetch_at);
        let unsaved = self.saving.is_none() && self.save_at > now && self.cursor() != self.saved;
        let save = unsaved.then_some(self.save_at);
        [due, fetch, save].into_iter().flatten().min()
    }
}

#[async_trait]
impl DeliverySource for Source {
    async fn next(&mut self) -> Option<Delivery> {
        let queue = self.queue.clone();
        loop {
            let mut changed = std::pin::pin!(queue.changed.notified());
            // Listening before looking: what changes in between is not missed.
            changed.as_mut().enable();
            let due = match self.take() {
                Ok(delivery) => return Some(delivery),
                Err(due) => due,
            };
            let now = Instant::now();
            self.begin_over();
            self.start_fetching(now);
            self.start_saving(now);
            let wake = self.next_wake(now, due);
            // Both go on where they were when this is dropped and called again: nothing read is lost.
            tokio::select! {
                Some(page) = OptionFuture::from(self.fetching.as_mut()) => {
                    self.fetching = None;
                    self.fetched(page);
                }
                Some(saved) = OptionFuture::from(self.saving.as_mut()) => {
                    self.saving = None;
                    self.save_finished(saved);
                }
                letters = self.replays.next() => queue.push_replays(letters),
                () = changed => {}
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
            }
        }
    }

    async fn close(&mut self) {
        if let Some(saving) = self.saving.take() {
            let saved = saving.await;
            self.save_finished(saved);
        }
        self.begin_over();
        self.save_at = Instant::now();
        self.start_saving(self.save_at);
        if let Some(saving) = self.saving.take() {
            let saved = saving.await;
            self.save_finished(saved);
        }
    }

    /// There is no broker between.
    fn carrier(&self) -> Carrier {
        Carrier { peer: self.queue.follower.endpoint.service(), ..Carrier::IN_PROCESS }
    }
}

async fn fetch(follower: Arc<Follower>, after: u64) -> anyhow::Result<FeedPage> {
    let settings = &follower.settings;
    let target = follower.endpoint.resolve().await.context("the log cannot be found")?;
    let url = format!("{}/internal/events", target.base_url.trim_end_matches('/'));
    let wait_ms = u64::try_from(settings.wait.as_millis()).unwrap_or(u64::MAX);
    let mut response = follower
        .http
        .get(url)
        .query(&[
            ("after", after),
            ("limit", u64::from(settings.page_events)),
            ("wait_ms", wait_ms),
        ])
        .headers(target.headers)
        .send()
        .await?
        .error_for_status()?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        anyhow::ensure!(
            body.len() + chunk.len() <= settings.max_response_bytes,
            "the page has more than {} bytes",
            settings.max_response_bytes
        );
        body.extend_from_slice(&chunk);
    }
    serde_json::from_slice(&body).context("the page cannot be read")
}
