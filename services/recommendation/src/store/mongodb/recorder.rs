//! Changes of members' histories, in batches: under load, a hundred share the round trips of one. A batch is
//!
//! 1. one read of its members' documents,
//! 2. one `update` of those that change, each only if it is still what was read, together with the
//!    list of what follows from the change,
//! 3. one `update` of holders and one of degrees, each statement recognising what it has done,
//! 4. one `update` that takes what was done off the members' lists.
//!
//! A process that dies in between leaves a list behind, which the next change of that member works off:
//! the event that was not acknowledged comes again, and is such a change.

use std::collections::{HashMap, HashSet};

use futures::future::try_join;
use mongodb::bson::doc;
use tourin_chassis::clock::SharedClock;

use super::collections::{DEGREES, DELETED, HOLDERS, MEMBERS, STATE};
use super::connection::{Connection, STATEMENTS, Statement};
use super::member::{Effect, Member, random};
use crate::app::ports::{HistoryEvent, HistoryOutcome, PortError};
use crate::batcher::{Batcher, Work};
use crate::store::HistoryRules;
use crate::store::interaction::Stamp;

/// Attempts at members that other replicas change at the same time.
const ATTEMPTS: usize = 20;
/// Effects that a spot remembers to recognise a repetition. After a crash or an outage the unacknowledged
/// effects are applied again: up to 256 in flight for each replica, besides those that others counted for the
/// spot meanwhile.
const RECOGNISED: i32 = 4_096;

/// A change of one member.
#[derive(Debug)]
pub(super) enum Change {
    /// An action of the member.
    Record(HistoryEvent),
    /// An order to forget: the member, the order's time, and how long the order is kept.
    Forget(String, Stamp, i64),
    /// Pruning: the member, the time before which removed bookmarks are dropped, and the current time.
    Prune(String, i64, i64),
}

impl Change {
    fn member(&self) -> &str {
        match self {
            Self::Record(event) => &event.member,
            Self::Forget(member, ..) | Self::Prune(member, ..) => member,
        }
    }

    fn apply(&self, member: &mut Member) -> Changed {
        match self {
            Self::Record(event) => Changed::Recorded(member.record(event)),
            Self::Forget(_, order, until) => {
                member.forget(*order, *until);
                Changed::Forgotten
            }
            Self::Prune(_, dead_before, now) => Changed::Pruned(member.prune(*dead_before, *now)),
        }
    }
}

/// The outcome of a [`Change`].
#[derive(Debug, Clone, Copy)]
pub(super) enum Changed {
    Recorded(HistoryOutcome),
    Forgotten,
    Pruned(u64),
}

/// Applies changes. Returns a [`Changed`] for each once all of its effects are applied.
pub(super) type Recorder = Batcher<Recording>;

/// Applies changes to the database.
pub(super) struct Recording {
    pub(super) connection: Connection,
    pub(super) rules: HistoryRules,
    pub(super) clock: SharedClock,
}

impl Work for Recording {
    type Item = Change;
    type Output = Changed;
    const NAME: &'static str = "the recorder of histories";
    /// The statements of one command.
    const MAX: usize = STATEMENTS;

    async fn run(&self, batch: &[Change]) -> Vec<Result<Changed, PortError>> {
        let mut results: Vec<Option<Result<Changed, PortError>>> =
            batch.iter().map(|_| None).collect();
        for _ in 0..ATTEMPTS {
            let waiting: Vec<usize> =
                (0..batch.len()).filter(|at| results[*at].is_none()).collect();
            if waiting.is_empty() {
                break;
            }
            let changes: Vec<&Change> = waiting.iter().map(|at| &batch[*at]).collect();
            match self.attempt(&changes).await {
                Ok(outcomes) => {
                    for (at, outcome) in waiting.into_iter().zip(outcomes) {
                        results[at] = outcome.map(Ok);
                    }
                }
                Err(error) => {
                    waiting.into_iter().for_each(|at| results[at] = Some(Err(error.clone())));
                }
            }
        }
        let busy =
            || PortError::failed(anyhow::anyhow!("the member is being changed by many at once"));
        results.into_iter().map(|result| result.unwrap_or_else(|| Err(busy()))).collect()
    }
}

impl Recording {
    /// Applies changes in order; `None` for one whose member was changed by another replica meanwhile.
    async fn attempt(&self, changes: &[&Change]) -> Result<Vec<Option<Changed>>, PortError> {
        let ids: HashSet<&str> = changes.iter().map(|change| change.member()).collect();
        let mut members = self.read(&ids).await?;
        let is_known = members.len() == ids.len();
        let floor = if is_known { 0 } else { self.floor().await? };
        let outcomes: Vec<Changed> = changes
            .iter()
            .map(|change| {
                let id = change.member();
                let member = members
                    .entry(id.to_owned())
                    .or_insert_with(|| Member::new(id.to_owned(), floor));
                change.apply(member)
            })
            .collect();

        let (changed, same): (Vec<Member>, Vec<Member>) =
            members.into_values().partition(Member::is_changed);
        let overtaken = self.write(&changed).await?;
        let written = changed.iter().filter(|member| !overtaken.contains(&member.id));
        self.apply_effects(written.chain(&same)).await?;
        Ok(changes
            .iter()
            .zip(outcomes)
            .map(|(change, changed)| (!overtaken.contains(change.member())).then_some(changed))
            .collect())
    }

    /// The lower bound of `seq` for a member without a document: the highest `seq` of all deleted documents.
    /// At least the current time, with which `seq` began in older data.
    async fn floor(&self) -> Result<i64, PortError> {
        let query = doc! { "_id": DELETED };
        let noted: Option<Floor> = self.connection.get(STATE, query, doc! { "seq": 1 }).await?;
        Ok(noted.map_or(0, |noted| noted.seq).max(self.clock.now().timestamp_micros()))
    }

    async fn read(&self, ids: &HashSet<&str>) -> Result<HashMap<String, Member>, PortError> {
        let ids: Vec<&str> = ids.iter().copied().collect();
        let query = doc! { "_id": { "$in": ids } };
        let found: Vec<Member> = self.connection.find(MEMBERS, query, doc! {}, doc! {}, 0).await?;
        Ok(found.into_iter().map(|member| (member.id.clone(), member.just_read())).collect())
    }

    /// Writes members. Returns those that another replica has changed since they were read.
    async fn write(&self, members: &[Member]) -> Result<HashSet<String>, PortError> {
        if members.is_empty() {
            return Ok(HashSet::new());
        }
        let by = random();
        let (mut known, mut new) = (Vec::new(), Vec::new());
        for member in members {
            let statement = member
                .write(self.rules.recent, by)
                .map_err(|error| PortError::failed(anyhow::anyhow!("mongodb: {error}")))?;
            if member.was_there() { known.push(statement) } else { new.push(statement) }
        }
        let (known, new) = try_join(
            self.connection.update(MEMBERS, &known),
            self.connection.upsert_where(MEMBERS, &new),
        )
        .await?;
        if known + new.matched == members.len() as u64 {
            return Ok(HashSet::new());
        }
        // A command says how many of its statements took effect, but not which.
        let ids: Vec<&str> = members.iter().map(|member| member.id.as_str()).collect();
        let query = doc! { "_id": { "$in": ids }, "by": by };
        let ours: Vec<Id> =
            self.connection.find(MEMBERS, query, doc! { "_id": 1 }, doc! {}, 0).await?;
        let ours: HashSet<String> = ours.into_iter().map(|found| found.id).collect();
        Ok(members.iter().map(|member| member.id.clone()).filter(|id| !ours.contains(id)).collect())
    }

    /// Applies the pending effects of members, and removes them from the members' lists.
    pub(super) async fn apply_effects<'a>(
        &self,
        members: impl Iterator<Item = &'a Member>,
    ) -> Result<(), PortError> {
        let (mut holders, mut degrees, mut done) = (Vec::new(), Vec::new(), Vec::new());
        let mut new = HashMap::<i64, Vec<&Effect>>::new();
        for member in members {
            let mut ops = Vec::new();
            for effect in member.effects() {
                holders.push(hold(&member.id, effect));
                ops.push(effect.op);
            }
            // Effects of earlier changes may have been applied already, so each has its own statement.
            degrees.extend(member.pending.iter().filter_map(|effect| grow(effect.spot, &[effect])));
            for effect in &member.new_effects {
                new.entry(effect.spot).or_default().push(effect);
            }
            if !ops.is_empty() {
                done.push(Statement {
                    query: doc! { "_id": &member.id },
                    update: doc! { "$pull": { "pending": { "op": { "$in": ops } } } },
                });
            }
        }
        // New effects are grouped by spot, because no other replica has counted them yet. Their statements
        // follow those of earlier changes.
        let begun = degrees.len();
        let mut groups = Vec::new();
        for (spot, effects) in new {
            if let Some(statement) = grow(spot, &effects) {
                degrees.push(statement);
                groups.push((spot, effects));
            }
        }
        let (_, counted) = try_join(
            self.connection.upsert_where(HOLDERS, &holders),
            self.connection.upsert_where(DEGREES, &degrees),
        )
        .await?;
        // Another replica may have applied an effect of the group meanwhile. The others of the group are then
        // counted one by one.
        let refused = counted.refused.iter().filter_map(|index| index.checked_sub(begun));
        let refused = refused.filter_map(|index| groups.get(index));
        let alone: Vec<Statement> = refused
            .flat_map(|(spot, effects)| effects.iter().filter_map(|effect| grow(*spot, &[*effect])))
            .collect();
        self.connection.upsert_where(DEGREES, &alone).await?;
        self.connection.update(MEMBERS, &done).await?;
        Ok(())
    }
}

/// Stores whether a member knows a spot. The member's latest change wins.
fn hold(member: &str, effect: &Effect) -> Statement {
    let mut update = doc! { "$set": {
        "spot": effect.spot,
        "member": member,
        "live": effect.live,
        "at": effect.at,
        "seq": effect.seq,
    } };
    if effect.live {
        update.insert("$unset", doc! { "gone_at": "" });
    } else if let Ok(set) = update.get_document_mut("$set") {
        // Kept for a while, because earlier changes may still be in flight.
        set.insert("gone_at", effect.at);
    }
    Statement {
        query: doc! {
            "_id": format!("{}:{member}", effect.spot),
            "seq": { "$lt": effect.seq },
        },
        update,
    }
}

/// Counts the members who know a spot, once for all of these effects, unless one of them was counted
/// before.
pub(super) fn grow(spot: i64, effects: &[&Effect]) -> Option<Statement> {
    let counting = effects.iter().filter(|effect| effect.growth != 0);
    let ops: Vec<i64> = counting.map(|effect| effect.op).collect();
    let growth: i64 = effects.iter().map(|effect| effect.growth).sum();
    (!ops.is_empty()).then(|| Statement {
        query: doc! { "_id": spot, "counted": { "$nin": ops.clone() } },
        update: doc! {
            "$inc": { "degree": growth },
            "$push": { "counted": { "$each": ops, "$slice": -RECOGNISED } },
        },
    })
}

#[derive(serde::Deserialize)]
struct Floor {
    seq: i64,
}

#[derive(serde::Deserialize)]
struct Id {
    #[serde(rename = "_id")]
    id: String,
}
