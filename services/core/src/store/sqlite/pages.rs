//! One page of the spots that match, by name.
//!
//! What a page costs, besides reading its own spots: either reading the matches and sorting them, or
//! walking over the names before the page, from the nearer end of the list; whichever is less.

use sqlx::SqliteConnection;

use super::grams::{EVERY_SPOT, json_numbers};
use super::search::{Matches, chunks, numbers};
use crate::domain::page::PageRequest;
use crate::domain::search::SpotSort;

/// Fewest and most names walked over per statement.
const WALKED_AT_ONCE: (u64, u64) = (100, 20_000);
/// Reading a match and sorting it by name costs about as much as walking over so many names.
const SORT_COST: u64 = 5;

const COUNT_ALL: &str = "SELECT coalesce(sum(g.spots), 0)
     FROM json_each(?1) AS c
     CROSS JOIN spot_grams AS g ON g.chunk = c.value AND g.gram = ?2";
const NAME_OF: &str = "SELECT name, id FROM tour_spots WHERE ord = ?1";

/// How many spots there are.
pub(super) async fn count_all(conn: &mut SqliteConnection) -> sqlx::Result<u64> {
    let Some(chunks) = chunks(conn).await? else {
        return Ok(0);
    };
    let count: i64 =
        sqlx::query_scalar(COUNT_ALL).bind(chunks).bind(EVERY_SPOT).fetch_one(conn).await?;
    Ok(count.cast_unsigned())
}

/// The `ord`s of a page's spots in their order. `total` is how many match, `all` how many there
/// are.
pub(super) async fn page_of(
    conn: &mut SqliteConnection,
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
const ALL_FORWARDS: &str = "SELECT ord FROM tour_spots INDEXED BY tour_spots_by_name
     WHERE name >= '' ORDER BY name, id LIMIT ?1 OFFSET ?2";
const ALL_BACKWARDS: &str = "SELECT ord FROM tour_spots INDEXED BY tour_spots_by_name
     WHERE name >= '' ORDER BY name DESC, id DESC LIMIT ?1 OFFSET ?2";

async fn of_all(
    conn: &mut SqliteConnection,
    backwards: bool,
    offset: u64,
    length: u64,
) -> sqlx::Result<Vec<i64>> {
    sqlx::query_scalar(if backwards { ALL_BACKWARDS } else { ALL_FORWARDS })
        .bind(length.cast_signed())
        .bind(offset.cast_signed())
        .fetch_all(conn)
        .await
}

const SORT_FORWARDS: &str = "SELECT s.ord FROM json_each(?3) AS m
     CROSS JOIN tour_spots AS s ON s.ord = m.value
     ORDER BY s.name, s.id LIMIT ?1 OFFSET ?2";
const SORT_BACKWARDS: &str = "SELECT s.ord FROM json_each(?3) AS m
     CROSS JOIN tour_spots AS s ON s.ord = m.value
     ORDER BY s.name DESC, s.id DESC LIMIT ?1 OFFSET ?2";

async fn by_sorting(
    conn: &mut SqliteConnection,
    matches: &Matches,
    backwards: bool,
    offset: u64,
    length: u64,
) -> sqlx::Result<Vec<i64>> {
    sqlx::query_scalar(if backwards { SORT_BACKWARDS } else { SORT_FORWARDS })
        .bind(length.cast_signed())
        .bind(offset.cast_signed())
        .bind(json_numbers(matches.ords()))
        .fetch_all(conn)
        .await
}

// One row per statement: handing rows over one by one costs more than the walk.
const WALK_FORWARDS: &str = "SELECT json_group_array(ord) FROM (
     SELECT ord FROM tour_spots INDEXED BY tour_spots_by_name
     WHERE (name, id) > (?1, ?2) ORDER BY name, id LIMIT ?3)";
const WALK_BACKWARDS: &str = "SELECT json_group_array(ord) FROM (
     SELECT ord FROM tour_spots INDEXED BY tour_spots_by_name
     WHERE (name, id) < (?1, ?2) ORDER BY name DESC, id DESC LIMIT ?3)";

/// `names` is how many names are walked over if the matches are spread evenly.
async fn by_walking(
    conn: &mut SqliteConnection,
    matches: &Matches,
    backwards: bool,
    (offset, length): (u64, u64),
    names: u64,
) -> sqlx::Result<Vec<i64>> {
    let (fewest, most) = WALKED_AT_ONCE;
    let mut at_once = names.clamp(fewest, most);
    let mut skipped = 0;
    let mut page = Vec::new();
    let mut at = if backwards {
        // Greater than every name: longer than any, of the greatest character.
        (String::from(char::MAX).repeat(256), i64::MAX)
    } else {
        (String::new(), -1)
    };
    loop {
        let names: String =
            sqlx::query_scalar(if backwards { WALK_BACKWARDS } else { WALK_FORWARDS })
                .bind(&at.0)
                .bind(at.1)
                .bind(at_once.cast_signed())
                .fetch_one(&mut *conn)
                .await?;
        let ords = numbers(&names)?;
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
        at = sqlx::query_as(NAME_OF).bind(last).fetch_one(&mut *conn).await?;
    }
}

/// What this module asks, for the test of the query plans.
#[cfg(test)]
pub(super) const STATEMENTS: [&str; 8] = [
    COUNT_ALL,
    NAME_OF,
    ALL_FORWARDS,
    ALL_BACKWARDS,
    SORT_FORWARDS,
    SORT_BACKWARDS,
    WALK_FORWARDS,
    WALK_BACKWARDS,
];
