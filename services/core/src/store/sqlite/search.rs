//! Which spots pass a filter, by the index.
//!
//! Nothing here reads every row of a table. What it costs at a million spots, in rows touched: a
//! filter by tags or by one or two characters, some hundreds; a longer query, that and one short
//! text per spot that has the query's rarest pairs of characters, once while the catalogue stays as
//! it is ([`Recent`]).

use std::sync::Arc;

use sqlx::SqliteConnection;

use super::super::spot_index::{Matches, RAREST, Recent, combine, json_numbers, place, tag_gram};
use crate::domain::search::{Gram, SearchText, SpotFilter};
use crate::domain::tag::TagSet;

/// Texts compared per statement.
const COMPARED_AT_ONCE: usize = 20_000;
/// Most bytes of results that are remembered. Each takes up to 1 bit per spot of the catalogue.
pub(super) const RECENT_BYTES: usize = 16 << 20;

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

/// Recent results by what was asked.
pub(super) type RecentMatches = Recent<(Option<SearchText>, TagSet), Arc<Matches>>;

/// The spots that pass the filter, without its member's existence being checked; `None` means all.
/// Must run in one transaction with whatever uses the result.
pub(super) async fn matching(
    conn: &mut SqliteConnection,
    recent: &RecentMatches,
    filter: &SpotFilter,
) -> sqlx::Result<Option<Arc<Matches>>> {
    let wanted = (filter.query.clone(), filter.tags);
    let mut found = None;
    if wanted.0.is_some() || !wanted.1.is_empty() {
        let revision = sqlx::query_scalar(REVISION).fetch_one(&mut *conn).await?;
        found = recent.get(revision, &wanted);
        if found.is_none() {
            let fresh = Arc::new(evaluate(conn, filter.query.as_ref(), filter.tags).await?);
            recent.put(revision, wanted, fresh.clone(), fresh.bytes());
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
    let rows: Vec<(i64, Gram, Vec<u8>)> = sqlx::query_as(SLOTS)
        .bind(&chunks)
        .bind(json_numbers(required.iter().chain(&alternatives).copied()))
        .fetch_all(&mut *conn)
        .await?;
    let matches = combine(rows, required.len(), !alternatives.is_empty())?;
    match query {
        Some(query) if !query.is_one_gram() => compare(conn, matches, query).await,
        _ => Ok(matches),
    }
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
