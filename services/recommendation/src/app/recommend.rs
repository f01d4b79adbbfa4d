//! The three queries of the service: the trend, similar spots, personal recommendations.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::anyhow;
use tourin_chassis::clock::SharedClock;

use super::last_trend::LastTrend;
use super::model::{CoOccurrence, Seed};
use super::ports::{HistoryStore, PortError, Profile, SpotReplica, TagCursor, TrendStore};
use crate::domain::content::ContentRules;
use crate::domain::ranking::{Candidates, blend};
use crate::domain::spot::{Spot, SpotId};
use crate::domain::trend::{Ranked, rank};

/// The maximum number of trend entries read to find spots that can be shown.
const TREND_DEPTH: usize = 10_000;
/// The member's latest spots that content similarity is measured against.
const CONTENT_SEEDS: usize = 5;
/// The maximum number of nearby spots compared by content.
const CONTENT_DEPTH: usize = 2_000;
/// Spots read in one query.
const CHUNK: usize = 200;

/// Answers the three queries.
#[derive(Clone)]
pub struct Recommender {
    /// The trend's scores.
    pub trend: Arc<dyn TrendStore>,
    /// Members' histories.
    pub histories: Arc<dyn HistoryStore>,
    /// The replica of spots.
    pub spots: Arc<dyn SpotReplica>,
    /// The similarity model.
    pub model: Arc<CoOccurrence>,
    /// The weights of tags and distance.
    pub content: ContentRules,
    /// The number of a member's latest spots that count.
    pub history_limit: usize,
    /// The clock of trend values.
    pub clock: SharedClock,
    /// Cached trend responses for outages.
    pub last_trend: LastTrend,
    /// Whether the replica of spots is known to be complete. It stays complete.
    pub was_complete: Arc<AtomicBool>,
}

impl Recommender {
    /// Up to `k` spots of the trend, best first. Only spots with a live score are in it, so it may
    /// be shorter or empty. During an outage of a store the last cached response is returned.
    ///
    /// # Errors
    /// When a store fails, and until the first resync of the spots has ended.
    pub async fn trend(&self, k: usize) -> Result<Vec<Spot>, PortError> {
        match self.current_trend(k).await {
            Ok(spots) => {
                self.last_trend.keep(k, &spots);
                Ok(spots)
            }
            Err(PortError::Unavailable(cause)) => {
                self.last_trend.get(k).ok_or(PortError::Unavailable(cause))
            }
            Err(error) => Err(error),
        }
    }

    async fn current_trend(&self, k: usize) -> Result<Vec<Spot>, PortError> {
        self.require_complete_replica().await?;
        let mut found = Found::default();
        let trending = self.trending(k, &HashSet::new(), &mut found).await?;
        Ok(found.take(trending, k))
    }

    /// Up to `k` spots for a member, best first, never one that the member has viewed or bookmarked.
    /// There are fewer only if there are no other spots. During an outage of the trend's store, the
    /// trend's last cached response is used.
    ///
    /// # Errors
    /// When a store fails, and until the first resync of the spots has ended.
    pub async fn personalized(&self, member: &str, k: usize) -> Result<Vec<Spot>, PortError> {
        if k == 0 {
            return Ok(Vec::new());
        }
        self.require_complete_replica().await?;
        let profile = self.histories.profile(member, self.history_limit).await?;
        let known = &profile.known;
        let mut found = Found::default();
        let mut candidates = Candidates {
            trending: match self.trending(k, known, &mut found).await {
                Err(PortError::Unavailable(_)) => self.last_trending(k, known, &mut found),
                trending => trending?,
            },
            ..Candidates::default()
        };
        if !profile.recent.is_empty() {
            candidates.co_occurring = self.co_occurring(&profile, k, &mut found).await?;
            if candidates.co_occurring.len() < k {
                candidates.alike = self.alike(&profile, k, &mut found).await?;
            }
        }
        let mut answer = found.take(blend(&candidates, known), k);
        self.fill(&mut answer, k, known).await?;
        Ok(answer)
    }

    /// Up to `k` spots similar to `spot`, best first, without itself. `None` if it does not exist.
    ///
    /// # Errors
    /// When a store fails, and until the first resync of the spots has ended.
    pub async fn similar(&self, spot: SpotId, k: usize) -> Result<Option<Vec<Spot>>, PortError> {
        self.require_complete_replica().await?;
        let Some(seed) = self.spots.get_many(&[spot]).await?.remove(&spot) else {
            return Ok(None);
        };
        if k == 0 {
            return Ok(Some(Vec::new()));
        }
        let itself = HashSet::from([spot]);
        let mut found = Found::default();
        let row = self.model.neighbours(spot).await?;
        let mut order = self.live(row.iter().copied(), k, &itself, &mut found).await?;
        if order.len() < k {
            let near = self.content_candidates(&seed, k + 1).await?;
            let alike = near
                .iter()
                .filter(|candidate| candidate.id != spot)
                .map(|candidate| Ranked {
                    spot: candidate.id,
                    value: self.content.affinity(&seed, candidate),
                })
                .collect();
            found.add(near);
            order.extend(spots_of(rank(alike)));
        }
        let mut answer = found.take(order, k);
        self.fill(&mut answer, k, &itself).await?;
        Ok(Some(answer))
    }

    /// Fails until the first resync has ended: an incomplete replica would make existing spots look
    /// as if they did not exist. Later the replica may lack only the newest spots of core.
    async fn require_complete_replica(&self) -> Result<(), PortError> {
        if self.was_complete.load(Ordering::Relaxed) {
            return Ok(());
        }
        if !self.spots.is_complete().await? {
            return Err(PortError::unavailable(anyhow!(
                "the replica of spots is not complete yet"
            )));
        }
        self.was_complete.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The `k` best spots of the trend that exist and are not in `known`.
    async fn trending(
        &self,
        k: usize,
        known: &HashSet<SpotId>,
        found: &mut Found,
    ) -> Result<Vec<SpotId>, PortError> {
        let now = self.clock.now();
        let mut depth = 2 * k + 10;
        loop {
            let top = self.trend.top(depth, now).await?;
            let exhausted = top.len() < depth || depth >= TREND_DEPTH;
            let live = self.live(top, k, known, found).await?;
            if live.len() >= k || exhausted {
                return Ok(live);
            }
            depth = (depth * 4).min(TREND_DEPTH);
        }
    }

    /// The cached trend without the spots in `known`.
    fn last_trending(&self, k: usize, known: &HashSet<SpotId>, found: &mut Found) -> Vec<SpotId> {
        let mut last = self.last_trend.get(k).unwrap_or_default();
        last.retain(|spot| !known.contains(&spot.id));
        let ids = last.iter().map(|spot| spot.id).collect();
        found.add(last);
        ids
    }

    async fn co_occurring(
        &self,
        profile: &Profile,
        k: usize,
        found: &mut Found,
    ) -> Result<Vec<SpotId>, PortError> {
        let seeds: Vec<Seed> = profile
            .recent
            .iter()
            .map(|remembered| Seed { spot: remembered.spot, weight: remembered.kind.weight() })
            .collect();
        let scored = self.model.score(&seeds).await?;
        self.live(scored, k, &profile.known, found).await
    }

    /// Spots whose tags and places are similar to those of the member's latest spots.
    async fn alike(
        &self,
        profile: &Profile,
        k: usize,
        found: &mut Found,
    ) -> Result<Vec<SpotId>, PortError> {
        let latest = &profile.recent[..profile.recent.len().min(CONTENT_SEEDS)];
        let ids: Vec<SpotId> = latest.iter().map(|remembered| remembered.spot).collect();
        let seeds = self.spots.get_many(&ids).await?;
        // The query also finds known spots. They must not displace the others.
        let wanted = k + profile.known.len();
        let mut pool = HashMap::<SpotId, Spot>::new();
        for seed in ids.iter().filter_map(|id| seeds.get(id)) {
            let near = self.content_candidates(seed, wanted).await?;
            pool.extend(near.into_iter().map(|spot| (spot.id, spot)));
        }
        let alike = pool
            .values()
            .filter(|spot| !profile.known.contains(&spot.id))
            .map(|spot| Ranked {
                spot: spot.id,
                value: latest
                    .iter()
                    .filter_map(|remembered| Some((remembered, seeds.get(&remembered.spot)?)))
                    .map(|(remembered, seed)| {
                        remembered.kind.weight() * self.content.affinity(seed, spot)
                    })
                    .sum(),
            })
            .collect();
        found.add(pool.into_values());
        Ok(spots_of(rank(alike)))
    }

    /// Spots near `seed`, with and without a common tag. At least `wanted`, as far as they exist and
    /// up to [`CONTENT_DEPTH`].
    async fn content_candidates(&self, seed: &Spot, wanted: usize) -> Result<Vec<Spot>, PortError> {
        let limit = (wanted + 50).min(CONTENT_DEPTH);
        let mut near = self.spots.near(seed.coordinates, None, limit).await?;
        if !seed.tags.is_empty() {
            let tagged = self.spots.near(seed.coordinates, Some(&seed.tags), limit).await?;
            let found: HashSet<SpotId> = near.iter().map(|spot| spot.id).collect();
            near.extend(tagged.into_iter().filter(|spot| !found.contains(&spot.id)));
        }
        Ok(near)
    }

    /// The first `wanted` spots of a ranking that exist and are not in `known`.
    async fn live(
        &self,
        ranking: impl IntoIterator<Item = Ranked>,
        wanted: usize,
        known: &HashSet<SpotId>,
        found: &mut Found,
    ) -> Result<Vec<SpotId>, PortError> {
        let unknown: Vec<Ranked> =
            ranking.into_iter().filter(|ranked| !known.contains(&ranked.spot)).collect();
        let mut live = Vec::with_capacity(wanted.min(unknown.len()));
        for chunk in unknown.chunks(CHUNK) {
            let ids: Vec<SpotId> = chunk.iter().map(|ranked| ranked.spot).collect();
            found.add(self.spots.get_many(&ids).await?.into_values());
            live.extend(ids.into_iter().filter(|id| found.has(*id)));
            if live.len() >= wanted {
                live.truncate(wanted);
                break;
            }
        }
        Ok(live)
    }

    /// Fills `answer` up to `k` with the spots that have the most tags.
    async fn fill(
        &self,
        answer: &mut Vec<Spot>,
        k: usize,
        known: &HashSet<SpotId>,
    ) -> Result<(), PortError> {
        let mut shown: HashSet<SpotId> = answer.iter().map(|spot| spot.id).collect();
        let mut after = None;
        while answer.len() < k {
            let page = self.spots.most_tagged(after, CHUNK).await?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = Some(TagCursor { tags: last.tags.len(), id: last.id });
            for spot in page {
                if answer.len() < k && !known.contains(&spot.id) && shown.insert(spot.id) {
                    answer.push(spot);
                }
            }
        }
        Ok(())
    }
}

fn spots_of(ranking: Vec<Ranked>) -> Vec<SpotId> {
    ranking.into_iter().map(|ranked| ranked.spot).collect()
}

/// The spots read for one response.
#[derive(Default)]
struct Found(HashMap<SpotId, Spot>);

impl Found {
    fn add(&mut self, spots: impl IntoIterator<Item = Spot>) {
        self.0.extend(spots.into_iter().map(|spot| (spot.id, spot)));
    }

    fn has(&self, id: SpotId) -> bool {
        self.0.contains_key(&id)
    }

    /// The first `k` spots of an order that were found, each once.
    fn take(mut self, order: impl IntoIterator<Item = SpotId>, k: usize) -> Vec<Spot> {
        order.into_iter().filter_map(|id| self.0.remove(&id)).take(k).collect()
    }
}
