//! Tells the gateways which of the responses that they have cached are out of date, by tags in the log of
//! ended sessions.
//!
//! A spot's responses have the tag `spot:ID`. They are out of date when an event says that the spot or its
//! reviews have changed: the publisher of events is wrapped, so that a change counts whichever process made
//! it. Likes have no event, and are noted by their handler.
//!
//! # Delivery
//! Tags wait in memory for the next transaction, which takes all of them along, and are kept until it
//! succeeds. A crash loses those of the last moment; then gateways serve what they have until it is too
//! old. So they do with a like that ends with its member's account: it has no event and no handler. And so
//! they do while the broker is away, with changes whose events wait behind others: the publisher has not
//! seen them yet. A view changes nothing that is shown, so it is not noted.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use moka::sync::Cache;
use tokio::sync::Notify;
use tourin_chassis::invalidation::EVERYTHING;
use tourin_chassis::shutdown::Shutdown;
use tourin_shared_events::bus::{MessagingSystem, PublishError, Publisher};
use tourin_shared_events::events::{
    DeleteReview, Event, Outgoing, ReviewTourspot, TourSpotDelete, TourSpotUpsert,
};
use uuid::Uuid;

use super::StoreError;
use super::revocations::Revocations;
use crate::domain::spot::SpotId;

/// Most tags that wait. More, as an import brings them, become one for everything. A log-out waits for the
/// transaction that appends them, so it is short.
const MAX_WAITING: usize = 100;
/// Events that are remembered, so that one which is published again is noted once.
const REMEMBERED: u64 = 10_000;
/// Pause after tags were written. A tag that comes several times meanwhile is written once, and very many become
/// one: the log is bounded, and they must not push ended sessions out of it.
const APPEND_EVERY: Duration = Duration::from_millis(50);
/// Pause after the log could not be written.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The tags that the gateways are about to be told.
pub struct Invalidations {
    revocations: Arc<Revocations>,
    waiting: Mutex<BTreeSet<String>>,
    news: Notify,
}

impl Invalidations {
    /// None yet; they are appended to the log of `revocations`.
    pub fn new(revocations: Arc<Revocations>) -> Self {
        Self { revocations, waiting: Mutex::default(), news: Notify::new() }
    }

    /// Notes that what was cached of a spot is out of date.
    pub fn spot_changed(&self, spot: SpotId) {
        self.add([tag(&spot.to_string())]);
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, tags: impl IntoIterator<Item = String>) {
        let mut waiting = self.waiting();
        waiting.extend(tags);
        if waiting.len() > MAX_WAITING || waiting.contains(EVERYTHING) {
            *waiting = BTreeSet::from([EVERYTHING.to_owned()]);
        }
        if !waiting.is_empty() {
            self.news.notify_one();
        }
    }

    /// Appends what waits, until `stop` begins, and then once more.
    pub async fn run(self: Arc<Self>, stop: Shutdown) {
        let mut is_failing = false;
        while !stop.is_begun() {
            tokio::select! {
                () = self.news.notified() => {}
                () = stop.begun() => break,
            }
            let appended = self.append().await;
            let pause = if appended.is_ok() { APPEND_EVERY } else { RETRY_AFTER };
            if let Err(error) = &appended
                && !is_failing
            {
                let error = error.describe();
                tracing::warn!(
                    error,
                    "invalidations of cached responses not written; trying again"
                );
            }
            is_failing = appended.is_err();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.begun() => break,
            }
        }
        if let Err(error) = self.append().await {
            let (error, lost) = (error.describe(), self.waiting().len());
            tracing::warn!(error, lost, "invalidations of cached responses lost");
        }
    }

    /// Appends what waits; puts it back when that fails.
    async fn append(&self) -> Result<(), StoreError> {
        let tags: Vec<String> = std::mem::take(&mut *self.waiting()).into_iter().collect();
        if tags.is_empty() {
            return Ok(());
        }
        let appended = self.revocations.invalidate(&tags).await;
        if appended.is_err() {
            self.add(tags);
        }
        appended
    }
}

fn tag(spot: &str) -> String {
    format!("spot:{spot}")
}

/// The tag of what an event puts out of date.
fn tag_of(event: &Outgoing) -> Option<String> {
    let changes_a_spot =
        [TourSpotUpsert::TYPE, TourSpotDelete::TYPE, ReviewTourspot::TYPE, DeleteReview::TYPE];
    let id = event.envelope.data.get("tourspot_id")?.as_str()?;
    changes_a_spot.contains(&event.envelope.r#type.as_str()).then(|| tag(id))
}

/// Notes what events put out of date, and publishes them.
pub struct InvalidatingPublisher {
    inner: Arc<dyn Publisher>,
    invalidations: Arc<Invalidations>,
    noted: Cache<Uuid, ()>,
}

impl InvalidatingPublisher {
    /// Publishes by `inner`.
    pub fn new(inner: Arc<dyn Publisher>, invalidations: Arc<Invalidations>) -> Self {
        Self { inner, invalidations, noted: Cache::new(REMEMBERED) }
    }
}

#[async_trait]
impl Publisher for InvalidatingPublisher {
    async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Result<(), PublishError>> {
        let changes = batch.iter().filter_map(|event| {
            let tag = tag_of(event)?;
            self.noted.entry(event.envelope.id).or_insert(()).is_fresh().then_some(tag)
        });
        self.invalidations.add(changes.collect::<Vec<_>>());
        self.inner.publish(batch).await
    }

    fn batch_size(&self) -> usize {
        self.inner.batch_size()
    }

    fn messaging_system(&self) -> MessagingSystem {
        self.inner.messaging_system()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tourin_shared_events::events::ViewTourspot;

    use super::*;
    use crate::testing::TestCore;

    /// A broker that takes nothing, and counts what it was given.
    #[derive(Default)]
    struct Broker {
        given: Mutex<usize>,
    }

    #[async_trait]
    impl Publisher for Broker {
        async fn publish(&self, batch: Vec<Outgoing>) -> Vec<Result<(), PublishError>> {
            *self.given.lock().unwrap() += batch.len();
            batch.iter().map(|_| Err(PublishError::Unavailable("away".to_owned()))).collect()
        }
    }

    async fn logged(core: &TestCore) -> Vec<String> {
        let page = core.call("GET", "/internal/revocations", None, None).await.json();
        let tags = page["entries"].as_array().unwrap().iter().map(|entry| &entry["invalidate"]);
        tags.filter_map(Value::as_str).map(str::to_owned).collect()
    }

    fn review(spot: &str) -> Outgoing {
        let event = ReviewTourspot {
            user_id: "hana12345".to_owned(),
            tourspot_id: spot.to_owned(),
            review_id: "1".to_owned(),
        };
        Outgoing::new(&event, chrono::Utc::now())
    }

    #[tokio::test]
    async fn events_of_a_spots_changes_put_its_responses_out_of_date_once() {
        let core = TestCore::start().await;
        let invalidations = Arc::clone(&core.state.invalidations);
        let broker = Arc::new(Broker::default());
        let publisher = InvalidatingPublisher::new(broker.clone(), Arc::clone(&invalidations));
        let view = ViewTourspot { user_id: "hana12345".to_owned(), tourspot_id: "3".to_owned() };
        let gone = TourSpotDelete { tourspot_id: "2".to_owned(), version: 9 };
        let batch = vec![
            review("1"),
            review("1"),
            Outgoing::new(&view, chrono::Utc::now()),
            Outgoing::new(&gone, chrono::Utc::now()),
        ];
        let results = publisher.publish(batch.clone()).await;
        assert!(results.len() == 4 && results.iter().all(Result::is_err));
        invalidations.append().await.unwrap();
        assert_eq!(logged(&core).await, ["spot:1", "spot:2"]);
        // The relay publishes again what the broker has not taken.
        publisher.publish(batch).await;
        invalidations.append().await.unwrap();
        assert_eq!((logged(&core).await.len(), *broker.given.lock().unwrap()), (2, 8));
        publisher.publish(vec![review("1")]).await;
        invalidations.append().await.unwrap();
        assert_eq!(logged(&core).await.len(), 3, "another event");
    }

    #[tokio::test]
    async fn an_import_puts_everything_out_of_date() {
        let core = TestCore::start().await;
        let invalidations = &core.state.invalidations;
        for spot in 0..=100 {
            invalidations.spot_changed(SpotId::new(spot));
        }
        invalidations.append().await.unwrap();
        assert_eq!(logged(&core).await, ["*"]);
        invalidations.spot_changed(SpotId::new(5));
        invalidations.append().await.unwrap();
        assert_eq!(logged(&core).await, ["*", "spot:5"]);
    }
}
