//! One page of the spots that match, by name.
//!
//! What a page costs, besides reading its own spots: either reading the matches and sorting them, or
//! walking over the names before the page, from the nearer end of the list; whichever is less.

use sqlx::mysql::MySqlConnection;

use super::super::spot_index::{Matches, json_numbers};
use super::numbers;
use crate::domain::page::PageRequest;
use crate::domain::search::SpotSort;

/// Fewest and most names walked over per statement.
const WALKED_AT_ONCE: (u64, u64) = (100, 20_000);
/// Reading a match and sorting it by name costs about as much as walking over so many names.
const SORT_COST: u64 = 5;

/// The `ord`s of a page's spots in their order. `total` is how many match, `all` how many there
/// are.
pub(super) async fn page_of(
    conn: &mut MySqlConnection,
    matches: Option<&Matches>,
    (total, all): (u64, u64),
    sort: SpotSort,
    page: PageRequest,
) -> sqlx::Result<Vec<i64>> {
    let Some(left) = total.checked_sub(page.offset()).filter(|left| *left > 0) else {
        return Ok(Vec::new());
    };
    let length = left.min(u64::from(page.size()));
    // The page as seen from the ascending list's end that is nearer.
    let descending = sort == SpotSort::NameDescending;
    let from_far_end = page.offset() > left - length;
    let offset = if from_far_end { left - length } else { page.offset() };
    let backwards = descending != from_far_end;

    let mut ords = match matches {
        None => of_all(conn, backwards, offset, length).await?,
        Some(matches) => {
            let names_before = (offset + length).saturating_mul(all) / total;
            if total.saturating_mul(SORT_COST) <= names_before {
                by_sorting(conn, matches, backwards, offset, length).await?
            } else {
                by_walking(conn, matches, backwards, (offset, length), names_before).await?
            }
        }
    };
    if from_far_end {
        ords.reverse();
    }
    Ok(ords)
}

// No text is less than the empty one: the condition makes a walk along the index a search in it.
pub(super) const ALL_FORWARDS: &str = "SELECT ord FROM tour_spots FORCE INDEX (tour_spots_by_name)
     WHERE name >= '' ORDER BY name, id LIMIT ? OFFSET ?";
pub(super) const ALL_BACKWARDS: &str = "SELECT ord FROM tour_spots FORCE INDEX (tour_spots_by_name)
     WHERE name >= '' ORDER BY name DESC, id DESC LIMIT ? OFFSET ?";

async fn of_all(
    conn: &mut MySqlConnection,
    backwards: bool,
    offset: u64,
    length: u64,
) -> sqlx::Result<Vec<i64>> {
    sqlx::query_scalar(if backwards { ALL_BACKWARDS } else { ALL_FORWARDS })
        .bind(length)
        .bind(offset)
        .fetch_all(conn)
        .await
}

pub(super) const SORT_FORWARDS: &str = concat!(
    "SELECT s.ord FROM ",
    numbers!(),
    " STRAIGHT_JOIN tour_spots AS s ON s.ord = w.v ORDER BY s.name, s.id LIMIT ? OFFSET ?"
);
pub(super) const SORT_BACKWARDS: &str = concat!(
    "SELECT s.ord FROM ",
    numbers!(),
    " STRAIGHT_JOIN tour_spots AS s ON s.ord = w.v ORDER BY s.name DESC, s.id DESC LIMIT ? OFFSET ?"
);

async fn by_sorting(
    conn: &mut MySqlConnection,
    matches: &Matches,
    backwards: bool,
    offset: u64,
    length: u64,
) -> sqlx::Result<Vec<i64>> {
    sqlx::query_scalar(if backwards { SORT_BACKWARDS } else { SORT_FORWARDS })
        .bind(json_numbers(matches.ords()))
        .bind(length)
        .bind(offset)
        .fetch_all(conn)
        .await
}

// Not `(name, id) > (?, ?)`, which neither server turns into a search in the index.
pub(super) const WALK_FORWARDS: &str = "SELECT ord FROM tour_spots FORCE INDEX (tour_spots_by_name)
     WHERE name >= ? AND (name > ? OR id > ?) ORDER BY name, id LIMIT ?";
pub(super) const WALK_BACKWARDS: &str =
    "SELECT ord FROM tour_spots FORCE INDEX (tour_spots_by_name)
     WHERE name <= ? AND (name < ? OR id < ?) ORDER BY name DESC, id DESC LIMIT ?";
pub(super) const NAME_OF: &str = "SELECT name, id FROM tour_spots WHERE ord = ?";

/// `names` is how many names are walked over if the matches are spread evenly.
async fn by_walking(
    conn: &mut MySqlConnection,
    matches: &Matches,
    backwards: bool,
    (offset, length): (u64, u64),
    names: u64,
) -> sqlx::Result<Vec<i64>> {
    let (fewest, most) = WALKED_AT_ONCE;
    let mut at_once = names.clamp(fewest, most);
    let mut skipped = 0;
    let mut page = Vec::new();
    let mut at: Option<(String, i64)> = None;
    loop {
        let ords: Vec<i64> = match &at {
            None => of_all(conn, backwards, 0, at_once).await?,
            Some((name, id)) => {
                sqlx::query_scalar(if backwards { WALK_BACKWARDS } else { WALK_FORWARDS })
                    .bind(name)
                    .bind(name)
                    .bind(id)
                    .bind(at_once)
                    .fetch_all(&mut *conn)
                    .await?
            }
        };
        for ord in &ords {
            if !matches.contains(*ord) {
                continue;
            }
            if skipped < offset {
                skipped += 1;
                continue;
            }
            page.push(*ord);
            if page.len() as u64 == length {
                return Ok(page);
            }
        }
        let Some(last) = ords.last() else {
            return Ok(page);
        };
        at_once = (at_once * 2).min(most);
        at = Some(sqlx::query_as(NAME_OF).bind(last).fetch_one(&mut *conn).await?);
    }
}
