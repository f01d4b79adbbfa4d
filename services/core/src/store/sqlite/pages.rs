//! One page of the spots that match, by name.
//!
//! What a page costs, besides reading its own spots: either reading the matches and sorting them, or
//! walking over the names before the page, from the nearer end of the list; whichever is less. How
//! long the walk is is known only if the matches are spread evenly, so a walk that has cost as much
//! as sorting is given up for it: the page costs at most twice the less of the two.

use sqlx::SqliteConnection;

use super::super::spot_index::{EVERY_SPOT, Matches, json_numbers};
use super::search::{chunks, numbers};
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
            let most = total.saturating_mul(SORT_COST);
            let walked = if names_before < most {
                let names = (names_before, most);
                by_walking(conn, matches, backwards, (offset, length), names).await?
            } else {
                None
            };
            match walked {
                Some(page) => page,
                None => by_sorting(conn, matches, backwards, offset, length).await?,
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

/// `expected` is how many names are walked over if the matches are spread evenly; after `at_most`
/// the walk is given up, and the answer is `None`.
async fn by_walking(
    conn: &mut SqliteConnection,
    matches: &Matches,
    backwards: bool,
    (offset, length): (u64, u64),
    (expected, at_most): (u64, u64),
) -> sqlx::Result<Option<Vec<i64>>> {
    let (fewest, most) = WALKED_AT_ONCE;
    let mut at_once = expected.clamp(fewest, most);
    let mut left = at_most;
    let mut skipped = 0;
    let mut page = Vec::new();
    let mut at = if backwards {
        // Greater than every name: longer than any, of the greatest character.
        (String::from(char::MAX).repeat(256), i64::MAX)
    } else {
        (String::new(), -1)
    };
    while left > 0 {
        at_once = at_once.min(left);
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
                return Ok(Some(page));
            }
        }
        let Some(last) = ords.last() else {
            return Ok(Some(page));
        };
        left -= at_once;
        at_once = (at_once * 2).min(most);
        at = sqlx::query_as(NAME_OF).bind(last).fetch_one(&mut *conn).await?;
    }
    Ok(None)
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use tourin_shared_events::outbox::Wake;

    use super::*;
    use crate::store::sqlite::SqliteStore;

    /// Spots, named in the order of their `ord`.
    const ALL: i64 = 50_000;
    /// Steps of SQLite's machine between two looks at the counter.
    const STRIDE: i32 = 10;

    /// What `work` answers, and how many steps of SQLite's machine it takes.
    async fn counted<T>(
        conn: &mut SqliteConnection,
        work: impl AsyncFnOnce(&mut SqliteConnection) -> sqlx::Result<T>,
    ) -> (T, u64) {
        let calls = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&calls);
        conn.lock_handle().await.unwrap().set_progress_handler(STRIDE, move || {
            counter.fetch_add(1, Ordering::Relaxed);
            true
        });
        let answer = work(conn).await.unwrap();
        conn.lock_handle().await.unwrap().remove_progress_handler();
        (answer, calls.load(Ordering::Relaxed) * u64::from(STRIDE.unsigned_abs()))
    }

    #[tokio::test]
    async fn matches_at_the_far_end_of_the_names_cost_no_walk_over_all_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("core.sqlite3");
        let store = SqliteStore::open(&path, 1, Wake::new()).await.unwrap();
        let mut writer = store.db.write().await.unwrap();
        sqlx::query(
            "INSERT INTO tour_spots (ord, id, version, name, address, lat, lng, cell, tags)
             WITH RECURSIVE numbers (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers LIMIT ?1)
             SELECT n, n, 1, printf('%08d', n), 'x', 37.5, 127.0, 0, 1 FROM numbers",
        )
        .bind(ALL)
        .execute(&mut *writer)
        .await
        .unwrap();
        writer.commit().await.unwrap();
        let mut conn = store.db.reader().acquire().await.unwrap();

        const COUNT: i64 = 500;
        let at_the_end: Vec<i64> = (ALL - COUNT..ALL).collect();
        let at_the_start: Vec<i64> = (0..COUNT).collect();
        let page = |number| PageRequest::new(Some(number), Some(10)).unwrap();
        for (ords, sort) in
            [(at_the_end, SpotSort::NameAscending), (at_the_start, SpotSort::NameDescending)]
        {
            let matches = Matches::from_ords(ords.clone());
            let descending = sort == SpotSort::NameDescending;
            let (_, whole_walk) = counted(&mut conn, async |conn| {
                by_walking(conn, &matches, descending, (0, 10), (100, u64::MAX)).await
            })
            .await;
            for number in [1, 2, 3] {
                let totals = (COUNT.unsigned_abs(), ALL.unsigned_abs());
                let (found, steps) = counted(&mut conn, async |conn| {
                    page_of(conn, Some(&matches), totals, sort, page(number)).await
                })
                .await;
                let mut expected = ords.clone();
                if descending {
                    expected.reverse();
                }
                let skipped = usize::try_from(page(number).offset()).unwrap();
                assert_eq!(found, expected[skipped..skipped + 10]);
                assert!(steps < whole_walk / 10, "{steps} steps; a whole walk has {whole_walk}");
            }
        }
    }
}
