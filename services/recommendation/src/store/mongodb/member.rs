//! A member's document: the complete history, and pending updates of other documents.

use mongodb::bson::{Document, doc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::connection::Statement;
use crate::app::ports::{HistoryEvent, HistoryOutcome};
use crate::store::interaction::{Interaction, Stamp};

/// A stored member with its changes since it was read.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Member {
    #[serde(rename = "_id")]
    pub(super) id: String,
    /// Grows with each change. A change is written only if the stored `seq` is still the one read.
    seq: i64,
    items: Vec<Item>,
    /// When the member was forgotten, with which version, and how long this is kept.
    forgotten_at: Option<i64>,
    forgotten_version: Option<i64>,
    forgotten_until: Option<i64>,
    /// Effects of earlier changes on other documents that are not acknowledged.
    #[serde(default)]
    pub(super) pending: Vec<Effect>,
    /// The `seq` that was read; `None` without a document.
    #[serde(skip)]
    read_seq: Option<i64>,
    /// The effects of this change.
    #[serde(skip)]
    pub(super) new_effects: Vec<Effect>,
    #[serde(skip)]
    is_changed: bool,
}

/// A spot of a member's history. The names are short because a document has many items.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Item {
    /// The spot.
    s: i64,
    /// The time of the last view.
    v: Option<i64>,
    /// Whether it is bookmarked.
    b: bool,
    /// The time of the last change of the bookmark.
    c: Option<i64>,
    /// The version of that change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    n: Option<i64>,
}

impl Item {
    fn interaction(self) -> Interaction {
        let version = self.n.unwrap_or_default();
        Interaction {
            viewed_at: self.v,
            bookmarked: self.b,
            bookmark_changed: self.c.map(|at| Stamp { version, at }),
        }
    }

    fn new(spot: i64, interaction: Interaction) -> Self {
        Self {
            s: spot,
            v: interaction.viewed_at,
            b: interaction.bookmarked,
            c: interaction.bookmark_changed.map(|changed| changed.at),
            n: interaction.bookmark_changed.map(|changed| changed.version).filter(|n| *n != 0),
        }
    }

    pub(super) fn parts(self) -> (i64, Interaction) {
        (self.s, self.interaction())
    }
}

/// The effect of a change of a member's history on one of its spots.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Effect {
    /// The id by which a spot recognises that it has counted this effect.
    pub(super) op: i64,
    /// The member's `seq` of the change. The highest is the latest.
    pub(super) seq: i64,
    /// The spot.
    pub(super) spot: i64,
    /// The change of the number of members who know the spot.
    pub(super) growth: i64,
    /// Whether the member knows the spot now.
    pub(super) live: bool,
    /// The time of the member's last interaction with it.
    pub(super) at: i64,
}

impl Member {
    /// A member without a document. An earlier document may have been deleted. `floor` is at least as
    /// high as its `seq`, so that no `seq` is used twice.
    pub(super) fn new(id: String, floor: i64) -> Self {
        Self { id, seq: floor, ..Self::default() }
    }

    /// Marks the member as just read.
    pub(super) fn just_read(mut self) -> Self {
        self.read_seq = Some(self.seq);
        self
    }

    pub(super) fn record(&mut self, event: &HistoryEvent) -> HistoryOutcome {
        let stamp = Stamp::from(event.occurred);
        if self.forgotten().is_some_and(|order| order.forgets(stamp)) {
            return HistoryOutcome::Forgotten;
        }
        let spot = event.spot.number();
        let index = self.items.iter().position(|item| item.s == spot);
        let before = index.map(|index| self.items[index].interaction()).unwrap_or_default();
        let after = before.after(event.change, stamp, event.recorded_at.timestamp_micros());
        if before == after {
            return HistoryOutcome::Stale;
        }
        match index {
            Some(index) => self.items[index] = Item::new(spot, after),
            None => self.items.push(Item::new(spot, after)),
        }
        self.changed();
        let growth = i64::from(after.is_live()) - i64::from(before.is_live());
        if growth != 0 || after.is_live() {
            self.affect(spot, growth, after.is_live(), after.last_at());
        }
        HistoryOutcome::Applied
    }

    /// The last order to forget the member.
    fn forgotten(&self) -> Option<Stamp> {
        let version = self.forgotten_version.unwrap_or_default();
        self.forgotten_at.map(|at| Stamp { version, at })
    }

    /// Deletes the history, and ignores events from before `order` from now on. Repeating the order
    /// does not affect a new member with the same id.
    pub(super) fn forget(&mut self, order: Stamp, until: i64) {
        if self.forgotten().is_some_and(|known| known.forgets(order)) {
            return;
        }
        self.changed();
        self.forgotten_at = Some(order.at);
        self.forgotten_version = Some(order.version).filter(|version| *version != 0);
        self.forgotten_until = Some(self.forgotten_until.map_or(until, |before| before.max(until)));
        for item in std::mem::take(&mut self.items) {
            if item.interaction().is_live() {
                self.affect(item.s, -1, false, order.at);
            }
        }
    }

    /// Drops bookmarks that were removed before `dead_before`, and an order to forget that has expired
    /// at `now`. Returns how many there were.
    pub(super) fn prune(&mut self, dead_before: i64, now: i64) -> u64 {
        let before = self.items.len();
        self.items.retain(|item| {
            let interaction = item.interaction();
            interaction.is_live() || interaction.last_at() >= dead_before
        });
        let mut removed = (before - self.items.len()) as u64;
        if self.forgotten_until.is_some_and(|until| until < now) {
            (self.forgotten_at, self.forgotten_version, self.forgotten_until) = (None, None, None);
            removed += 1;
        }
        if removed > 0 {
            self.changed();
        }
        removed
    }

    pub(super) fn is_changed(&self) -> bool {
        self.is_changed
    }

    /// The effects on other documents, to be applied once this document is written.
    pub(super) fn effects(&self) -> impl Iterator<Item = &Effect> {
        self.pending.iter().chain(&self.new_effects)
    }

    /// The change as a statement that takes effect only if the member has not changed since it was
    /// read. `by` identifies the writer.
    pub(super) fn write(
        &self,
        recent: usize,
        by: i64,
    ) -> Result<Statement, mongodb::bson::error::Error> {
        let mut live: Vec<(i64, i64)> = self
            .items
            .iter()
            .filter(|item| item.interaction().is_live())
            .map(|item| (item.interaction().last_at(), item.s))
            .collect();
        live.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        let degree = i64::try_from(live.len()).unwrap_or(i64::MAX);
        let recent: Vec<i64> = live.into_iter().take(recent).map(|(_, spot)| spot).collect();
        let mut set = doc! {
            "seq": self.seq,
            "by": by,
            "items": mongodb::bson::serialize_to_bson(&self.items)?,
            "degree": degree,
            "recent": recent,
        };
        let mut unset = Document::new();
        let oldest_dead = self
            .items
            .iter()
            .filter(|item| !item.interaction().is_live())
            .map(|item| item.interaction().last_at())
            .min();
        for (field, value) in [
            ("oldest_dead_at", oldest_dead),
            ("forgotten_at", self.forgotten_at),
            ("forgotten_version", self.forgotten_version),
            ("forgotten_until", self.forgotten_until),
        ] {
            match value {
                Some(value) => set.insert(field, value),
                None => unset.insert(field, ""),
            };
        }
        let new_effects = mongodb::bson::serialize_to_bson(&self.new_effects)?;
        let mut update = doc! { "$set": set, "$push": { "pending": { "$each": new_effects } } };
        if !unset.is_empty() {
            update.insert("$unset", unset);
        }
        let expected = match self.read_seq {
            Some(seq) => doc! { "_id": &self.id, "seq": seq },
            // Does not match an existing document, whose `seq` is never negative.
            None => doc! { "_id": &self.id, "seq": { "$lt": 0 } },
        };
        Ok(Statement { query: expected, update })
    }

    /// Whether the document must exist for [`Member::write`] to take effect.
    pub(super) fn was_there(&self) -> bool {
        self.read_seq.is_some()
    }

    fn changed(&mut self) {
        if !self.is_changed {
            self.is_changed = true;
            self.seq += 1;
        }
    }

    fn affect(&mut self, spot: i64, growth: i64, live: bool, at: i64) {
        let seq = self.seq;
        if let Some(effect) = self.new_effects.iter_mut().find(|effect| effect.spot == spot) {
            effect.growth += growth;
            (effect.live, effect.at) = (live, at);
        } else {
            self.new_effects.push(Effect { op: random(), seq, spot, growth, live, at });
        }
    }
}

/// A random number that is unique in practice, and not negative.
pub(super) fn random() -> i64 {
    // Half of a random UUID has 62 random bits.
    (Uuid::new_v4().as_u64_pair().1 >> 1).cast_signed()
}
