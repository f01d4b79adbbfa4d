//! The contract of the ports of spots, bookmarks, reviews and views. Each engine runs the complete
//! suite.

mod bookmarks;
mod model;
mod mysql;
mod reviews;
mod spots;
mod sqlite;

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use tourin_shared_events::outbox::OutboxStore;
use tourin_shared_events::outbox::testing::recorded;

use crate::app::accounts::{AccountStore, Created, Credentials};
use crate::app::bookmarks::BookmarkStore;
use crate::app::passwords::PasswordHash;
use crate::app::reviews::ReviewStore;
use crate::app::spots::SpotStore;
use crate::app::views::ViewStore;
use crate::domain::account::{Account, Email, MemberId, Name};
use crate::domain::page::PageRequest;
use crate::domain::spot::{RawSpot, SpotContent, SpotDraft, SpotId};
use crate::domain::tag::{Tag, TagSet};

/// All ports on the engine under test.
pub(super) struct Stores {
    accounts: Arc<dyn AccountStore>,
    spots: Arc<dyn SpotStore>,
    bookmarks: Arc<dyn BookmarkStore>,
    reviews: Arc<dyn ReviewStore>,
    views: Arc<dyn ViewStore>,
    outbox: Arc<dyn OutboxStore>,
}

const HANA: &str = "hana12345";
const DULI: &str = "duli12345";
const STRANGER: &str = "nobody123";

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap() + TimeDelta::seconds(seconds)
}

fn raw(name: &str, address: &str) -> RawSpot {
    RawSpot {
        name: name.to_owned(),
        address: address.to_owned(),
        lat: 37.5,
        lng: 127.0,
        tags: TagSet::from_iter([Tag::History]),
        ..RawSpot::default()
    }
}

fn draft(id: i64, raw: RawSpot) -> SpotDraft {
    SpotDraft { id: SpotId::new(id), content: SpotContent::new(raw).unwrap() }
}

fn page(number: u64, size: u64) -> PageRequest {
    PageRequest::new(Some(number), Some(size)).unwrap()
}

impl Stores {
    async fn sign_up(&self, member: &str) {
        let credentials = Credentials {
            account: Account {
                id: MemberId::parse(member).unwrap(),
                name: Name::parse("김하나").unwrap(),
                email: Email::parse("someone@example.com").unwrap(),
            },
            hash: PasswordHash("hash".to_owned()),
        };
        assert_eq!(self.accounts.create(&credentials, at(0)).await.unwrap(), Created::Created);
    }

    async fn add(&self, drafts: &[SpotDraft]) {
        for batch in drafts.chunks(1_000) {
            self.spots.upsert_batch(batch, at(0)).await.unwrap();
        }
    }

    /// The events so far without those of spots, as type and data. Checks that versions grow, and removes
    /// them.
    async fn events_of_users(&self) -> Vec<(String, Value)> {
        let mut last = 0;
        let mut events = self.events().await;
        events.retain(|(kind, _)| kind.starts_with("user."));
        for (_, data) in &mut events {
            let version = data.as_object_mut().unwrap().remove("version").unwrap();
            assert!(version.as_u64().unwrap() > last, "{version} is not above {last}");
            last = version.as_u64().unwrap();
        }
        events
    }

    async fn events(&self) -> Vec<(String, Value)> {
        let events = recorded(&*self.outbox).await;
        events.into_iter().map(|(_, event)| (event.routing_key, event.envelope.data)).collect()
    }
}
