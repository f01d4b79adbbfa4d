//! Which spots pass a filter, by the index.
//!
//! Nothing here reads every row of a table. What it costs at a million spots, in rows touched: a
//! filter by tags or by one or two characters, some hundreds; a longer query, that and one short
//! text per spot that has the query's rarest pairs of characters, once while the catalogue stays as
//! it is ([`RecentMatches`]).

use std::sync::Arc;

use sqlx::mysql::MySqlConnection;

use super::super::spot_index::{Matches, RAREST, Recent, combine, json_numbers, tag_gram};
use super::numbers;
use crate::domain::search::{Gram, SearchText, SpotFilter};
use crate::domain::tag::TagSet;

/// Texts compared per statement.
const COMPARED_AT_ONCE: usize = 20_000;
/// Most bytes of results that are remembered. Each takes up to 1 bit per spot of the catalogue.
pub(super) const RECENT_BYTES: usize = 16 << 20;

pub(super) const BOOKMARKED: &str =
    "SELECT s.ord FROM bookmarks AS b STRAIGHT_JOIN tour_spots AS s ON s.id = b.spot_id
     WHERE b.user_id = ?";
pub(super) const SLOTS: &str = concat!(
    "SELECT g.chunk, g.gram, g.slots FROM ",
    numbers!(),
    " STRAIGHT_JOIN spot_grams AS g FORCE INDEX (PRIMARY) ON g.gram = w.v"
);
pub(super) const RARITY: &str = concat!(
    "SELECT CAST(SUM(g.spots) AS SIGNED), g.gram FROM ",
    numbers!(),
    " STRAIGHT_JOIN spot_grams AS g FORCE INDEX (PRIMARY) ON g.gram = w.v GROUP BY g.gram"
);
pub(super) const COMPARE: &str = concat!(
    "SELECT t.ord FROM ",
    numbers!(),
    " STRAIGHT_JOIN spot_texts AS t ON t.ord = w.v WHERE LOCATE(?, t.folded) > 0"
);

/// Recent results by what was asked.
pub(super) type RecentMatches = Recent<(Option<SearchText>, TagSet), Arc<Matches>>;

/// The spots that pass the filter at this revision of the catalogue, without its member's existence
/// being checked; `None` means all. Must run in one snapshot with whatever uses the result.
pub(super) async fn matching(
    conn: &mut MySqlConnection,
    recent: &RecentMatches,
    revision: i64,
    filter: &SpotFilter,
) -> sqlx::Result<Option<Arc<Matches>>> {
    let wanted = (filter.query.clone(), filter.tags);
    let mut found = None;
    if wanted.0.is_some() || !wanted.1.is_empty() {
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
    conn: &mut MySqlConnection,
    query: Option<&SearchText>,
    tags: TagSet,
) -> sqlx::Result<Matches> {
    let required = match query {
        Some(query) => match rarest(conn, query).await? {
            Some(grams) => grams,
            None => return Ok(Matches::default()),
        },
        None => Vec::new(),
    };
    let alternatives: Vec<Gram> = tags.iter().map(tag_gram).collect();
    let rows: Vec<(i64, Gram, Vec<u8>)> = sqlx::query_as(SLOTS)
        .bind(json_numbers(required.iter().chain(&alternatives).copied()))
        .fetch_all(&mut *conn)
        .await?;
    let matches = combine(rows, required.len(), !alternatives.is_empty())?;
    match query {
        Some(query) if !query.is_one_gram() => compare(conn, matches, query).await,
        _ => Ok(matches),
    }
}

/// The query's rarest grams; `None` when no spot has one of them. Few are taken as they are.
async fn rarest(conn: &mut MySqlConnection, query: &SearchText) -> sqlx::Result<Option<Vec<Gram>>> {
    let grams = query.grams();
    if grams.len() <= RAREST {
        return Ok(Some(grams));
    }
    let mut counts: Vec<(i64, Gram)> =
        sqlx::query_as(RARITY).bind(json_numbers(grams.iter().copied())).fetch_all(conn).await?;
    if counts.len() < grams.len() {
        return Ok(None);
    }
    counts.sort_unstable();
    Ok(Some(counts.into_iter().take(RAREST).map(|(_, gram)| gram).collect()))
}

/// Of the candidates, those whose text has the whole query.
async fn compare(
    conn: &mut MySqlConnection,
    candidates: Matches,
    query: &SearchText,
) -> sqlx::Result<Matches> {
    let mut matching: Vec<i64> = Vec::new();
    let mut ords = candidates.ords().peekable();
    while ords.peek().is_some() {
        let group = json_numbers(ords.by_ref().take(COMPARED_AT_ONCE));
        let found: Vec<i64> = sqlx::query_scalar(COMPARE)
            .bind(group)
            .bind(query.as_str().as_bytes())
            .fetch_all(&mut *conn)
            .await?;
        matching.extend(found);
    }
    Ok(Matches::from_ords(matching))
}
