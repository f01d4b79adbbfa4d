//! Which spots pass a filter, by the index.
//!
//! Nothing here reads every row of a table. What it costs at a million spots, in rows touched: a
//! filter by tags or by one or two characters, some hundreds; a longer query, that and one short
//! text per spot that has the query's rarest pairs of characters, once while the catalogue stays as
//! it is ([`Recent`]).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::SqliteConnection;

use super::grams::{CHUNK, EVERY_SPOT, Slots, json_numbers, place, tag_gram};
use crate::domain::search::{Gram, SearchText, SpotFilter};
use crate::domain::tag::TagSet;

/// Of a query's grams, the rarest so many choose the spots whose text is compared.
const RAREST: usize = 4;
/// Texts compared per statement.
const COMPARED_AT_ONCE: usize = 20_000;
/// Results kept; each takes up to 1 bit per spot of the catalogue.
const RECENT: usize = 32;

const REVISION: &str = "SELECT revision FROM catalogue WHERE only = 1";
const BOOKMARKED: &str =
    "SELECT s.ord FROM bookmarks AS b CROSS JOIN tour_spots AS s ON s.id = b.spot_id
     WHERE b.user_id = ?1";
const SLOTS: &str = "SELECT g.chunk, g.gram, g.slots
     FROM json_each(?1) AS c
     CROSS JOIN json_each(?2) AS wanted
     CROSS JOIN spot_grams AS g ON g.chunk = c.value AND g.gram = wanted.value";
const LAST: &str = "SELECT max(ord) FROM tour_spots";
const RARITY: &str = "SELECT sum(g.spots), g.gram
     FROM json_each(?2) AS wanted
     CROSS JOIN json_each(?1) AS c
     CROSS JOIN spot_grams AS g ON g.chunk = c.value AND g.gram = wanted.value
     GROUP BY g.gram";
const COMPARE: &str = "SELECT json_group_array(t.ord)
     FROM json_each(?1) AS candidate
     CROSS JOIN spot_texts AS t ON t.ord = candidate.value
     WHERE instr(t.name, ?2) > 0 OR instr(t.address, ?2) > 0";

/// A set of spots, by `ord`.
#[derive(Clone, Default)]
pub(super) struct Matches(Vec<(i64, Slots)>);

impl Matches {
    pub(super) fn from_ords(mut ords: Vec<i64>) -> Self {
        ords.sort_unstable();
        let mut chunks: Vec<(i64, Slots)> = Vec::new();
        for ord in ords {
            let (chunk, slot) = place(ord);
            if chunks.last().is_none_or(|(last, _)| *last != chunk) {
                chunks.push((chunk, Slots::default()));
            }
            if let Some((_, slots)) = chunks.last_mut() {
                slots.insert(slot);
            }
        }
        Self(chunks)
    }

    pub(super) fn count(&self) -> u64 {
        self.0.iter().map(|(_, slots)| u64::from(slots.count())).sum()
    }

    pub(super) fn contains(&self, ord: i64) -> bool {
        let (chunk, slot) = place(ord);
        self.0
            .binary_search_by_key(&chunk, |(chunk, _)| *chunk)
            .is_ok_and(|at| self.0[at].1.contains(slot))
    }

    /// The spots, ascending.
    pub(super) fn ords(&self) -> impl Iterator<Item = i64> {
        self.0.iter().flat_map(|(chunk, slots)| {
            slots.iter().map(move |slot| chunk * CHUNK + i64::from(slot))
        })
    }

    fn retain_in(&mut self, other: &Self) {
        self.0.retain_mut(|(chunk, slots)| {
            match other.0.binary_search_by_key(chunk, |(chunk, _)| *chunk) {
                Ok(at) => slots.intersect(&other.0[at].1),
                Err(_) => return false,
            }
            slots.count() > 0
        });
    }
}

/// Results of recent searches, as long as the catalogue stays as it is.
#[derive(Clone, Default)]
pub(super) struct Recent(Arc<Mutex<Kept>>);

type Wanted = (Option<SearchText>, TagSet);

#[derive(Default)]
struct Kept {
    revision: i64,
    /// The most recently used last.
    results: VecDeque<(Wanted, Arc<Matches>)>,
}

impl Recent {
    fn get(&self, revision: i64, wanted: &Wanted) -> Option<Arc<Matches>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.revision != revision {
            return None;
        }
        let at = kept.results.iter().position(|(key, _)| key == wanted)?;
        let hit = kept.results.remove(at)?;
        let matches = hit.1.clone();
        kept.results.push_back(hit);
        Some(matches)
    }

    fn put(&self, revision: i64, wanted: Wanted, matches: Arc<Matches>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if revision < kept.revision {
            return;
        }
        if revision > kept.revision {
            *kept = Kept { revision, results: VecDeque::new() };
        }
        if kept.results.len() == RECENT {
            kept.results.pop_front();
        }
        kept.results.push_back((wanted, matches));
    }
}

/// The spots that pass the filter, without its member's existence being checked; `None` means all.
/// Must run in one transaction with whatever uses the result.
pub(super) async fn matching(
    conn: &mut SqliteConnection,
    recent: &Recent,
    filter: &SpotFilter,
) -> sqlx::Result<Option<Arc<Matches>>> {
    let wanted = (filter.query.clone(), filter.tags);
    let mut found = None;
    if wanted.0.is_some() || !wanted.1.is_empty() {
        let revision = sqlx::query_scalar(REVISION).fetch_one(&mut *conn).await?;
        found = recent.get(revision, &wanted);
        if found.is_none() {
            let fresh = Arc::new(evaluate(conn, filter.query.as_ref(), filter.tags).await?);
            recent.put(revision, wanted, fresh.clone());
            found = Some(fresh);
        }
    }
    let Some(member) = &filter.bookmarked_by else {
        return Ok(found);
    };
    let bookmarked: Vec<i64> = sqlx::query_scalar(BOOKMARKED).bind(member).fetch_all(conn).await?;
    let mut matches = Matches::from_ords(bookmarked);
    if let Some(found) = found {
        matches.retain_in(&found);
    }
    Ok(Some(Arc::new(matches)))
}

async fn evaluate(
    conn: &mut SqliteConnection,
    query: Option<&SearchText>,
    tags: TagSet,
) -> sqlx::Result<Matches> {
    let Some(chunks) = chunks(conn).await? else {
        return Ok(Matches::default());
    };
    let required = match query {
        Some(query) => match rarest(conn, &chunks, query).await? {
            Some(grams) => grams,
            None => return Ok(Matches::default()),
        },
        None => Vec::new(),
    };
    let alternatives: Vec<Gram> = tags.iter().map(tag_gram).collect();
    let mut rows: Vec<(i64, Gram, Vec<u8>)> = sqlx::query_as(SLOTS)
        .bind(&chunks)
        .bind(json_numbers(required.iter().chain(&alternatives).copied()))
        .fetch_all(&mut *conn)
        .await?;
    rows.sort_unstable_by_key(|row| row.0);

    let mut matches = Matches::default();
    for rows in rows.chunk_by(|one, other| one.0 == other.0) {
        if let Some(slots) = combine(rows, required.len(), !alternatives.is_empty())? {
            matches.0.push((rows[0].0, slots));
        }
    }
    match query {
        Some(query) if !query.is_one_gram() => compare(conn, matches, query).await,
        _ => Ok(matches),
    }
}

/// Within one chunk: the spots that have all required grams, and one of the tags if tags are asked
/// for. Tags are the grams below [`EVERY_SPOT`].
fn combine(
    rows: &[(i64, Gram, Vec<u8>)],
    required: usize,
    tagged: bool,
) -> sqlx::Result<Option<Slots>> {
    let mut of_text: Option<Slots> = None;
    let mut of_tags = Slots::default();
    let mut grams = 0;
    for (_, gram, slots) in rows {
        let slots = Slots::decode(slots)?;
        if *gram < EVERY_SPOT {
            of_tags.unite(&slots);
        } else {
            grams += 1;
            match &mut of_text {
                Some(all) => all.intersect(&slots),
                None => of_text = Some(slots),
            }
        }
    }
    if grams < required {
        return Ok(None);
    }
    let slots = match (of_text, tagged) {
        (Some(mut slots), true) => {
            slots.intersect(&of_tags);
            slots
        }
        (Some(slots), false) => slots,
        (None, _) => of_tags,
    };
    Ok((slots.count() > 0).then_some(slots))
}

/// All chunks that there may be, as a JSON array; `None` without spots.
pub(super) async fn chunks(conn: &mut SqliteConnection) -> sqlx::Result<Option<String>> {
    let last: Option<i64> = sqlx::query_scalar(LAST).fetch_one(conn).await?;
    Ok(last.map(|last| json_numbers(0..=place(last).0)))
}

/// The query's rarest grams; `None` when no spot has one of them.
async fn rarest(
    conn: &mut SqliteConnection,
    chunks: &str,
    query: &SearchText,
) -> sqlx::Result<Option<Vec<Gram>>> {
    let grams = query.grams();
    if grams.len() == 1 {
        return Ok(Some(grams));
    }
    let mut counts: Vec<(i64, Gram)> = sqlx::query_as(RARITY)
        .bind(chunks)
        .bind(json_numbers(grams.iter().copied()))
        .fetch_all(conn)
        .await?;
    if counts.len() < grams.len() {
        return Ok(None);
    }
    counts.sort_unstable();
    Ok(Some(counts.into_iter().take(RAREST).map(|(_, gram)| gram).collect()))
}

/// Of the candidates, those whose text has the whole query.
async fn compare(
    conn: &mut SqliteConnection,
    candidates: Matches,
    query: &SearchText,
) -> sqlx::Result<Matches> {
    let mut matching = Vec::new();
    let mut ords = candidates.ords().peekable();
    while ords.peek().is_some() {
        let group = json_numbers(ords.by_ref().take(COMPARED_AT_ONCE));
        let found: String = sqlx::query_scalar(COMPARE)
            .bind(group)
            .bind(query.as_str())
            .fetch_one(&mut *conn)
            .await?;
        matching.extend(numbers(&found)?);
    }
    Ok(Matches::from_ords(matching))
}

/// The numbers of a JSON array.
pub(super) fn numbers(json: &str) -> sqlx::Result<Vec<i64>> {
    serde_json::from_str(json).map_err(|error| sqlx::Error::Decode(error.into()))
}

/// What this module asks, for the test of the query plans.
#[cfg(test)]
pub(super) const STATEMENTS: [&str; 6] = [REVISION, BOOKMARKED, SLOTS, LAST, RARITY, COMPARE];
