//! The spots in a box of the map.

use std::fmt::Write as _;
use std::ops::RangeInclusive;

use sqlx::AssertSqlSafe;
use sqlx::mysql::MySqlConnection;

use super::super::spot_index::{Matches, grouped, json_numbers, rounds};
use super::numbers;
use crate::domain::geo::{Bounds, spread};

/// Up to so many spots in a box are all read.
const READ_WHOLE: usize = 4_000;
/// Up to so many matches are looked up one by one; more are looked for in the box.
const FEW: u64 = 20_000;
/// Cells per statement.
const CELLS_AT_ONCE: usize = 64;

pub(super) const LOOKED_UP: &str = concat!(
    "SELECT s.cell, s.ord FROM ",
    numbers!(),
    " STRAIGHT_JOIN tour_spots AS s ON s.ord = w.v
     WHERE s.lat BETWEEN ? AND ? AND s.lng BETWEEN ? AND ?
     ORDER BY s.cell, s.id"
);

/// The `ord`s of at most `most` spots in the box, out of `matches` or of all spots.
pub(super) async fn in_box(
    conn: &mut MySqlConnection,
    matches: Option<&Matches>,
    bounds: &Bounds,
    most: usize,
) -> sqlx::Result<Vec<i64>> {
    let cells = bounds.grid(most);
    // Few matches are less work than what is in the box, unless that is little as well.
    let few = matches.filter(|matches| matches.count() <= FEW);
    if few.is_none_or(|matches| matches.count() > READ_WHOLE as u64) {
        let everything = whole(conn, bounds, &cells).await?;
        if everything.len() <= READ_WHOLE {
            let passing = everything
                .into_iter()
                .filter(|(_, ord)| matches.is_none_or(|matches| matches.contains(*ord)));
            return Ok(spread(grouped(&cells, passing), most));
        }
    }
    let groups = match few {
        Some(matches) => grouped(&cells, looked_up(conn, matches, bounds).await?),
        None => firsts(conn, matches, bounds, &cells, most).await?,
    };
    Ok(spread(groups, most))
}

/// What is in the box, by code and id; one more than [`READ_WHOLE`] if there are more.
async fn whole(
    conn: &mut MySqlConnection,
    bounds: &Bounds,
    cells: &[RangeInclusive<i64>],
) -> sqlx::Result<Vec<(i64, i64)>> {
    sqlx::query_as(AssertSqlSafe(whole_sql(bounds, cells))).persistent(false).fetch_all(conn).await
}

/// Numbers are written into the statement: there are as many as the box has cells. A coordinate in
/// its exponential form is a DOUBLE to the server, the very one that it is here.
pub(super) fn whole_sql(bounds: &Bounds, cells: &[RangeInclusive<i64>]) -> String {
    let mut ranges: Vec<(i64, i64)> = Vec::new();
    for cell in cells {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *cell.start() => *last = *cell.end(),
            _ => ranges.push((*cell.start(), *cell.end())),
        }
    }
    let ranges: Vec<String> = ranges
        .into_iter()
        .map(|(first, last)| format!("s.cell BETWEEN {first} AND {last}"))
        .collect();
    format!(
        "SELECT s.cell, s.ord FROM tour_spots AS s FORCE INDEX (tour_spots_by_cell)
         WHERE ({}) AND {} ORDER BY s.cell, s.id LIMIT {}",
        ranges.join(" OR "),
        inside(bounds),
        READ_WHOLE + 1
    )
}

fn inside(bounds: &Bounds) -> String {
    let (min, max) = (bounds.min(), bounds.max());
    format!(
        "s.lat BETWEEN {:e} AND {:e} AND s.lng BETWEEN {:e} AND {:e}",
        min.lat(),
        max.lat(),
        min.lng(),
        max.lng()
    )
}

/// The matches in every cell of the grid; of a crowded cell only the first ones, as many as
/// [`spread`] can take.
async fn firsts(
    conn: &mut MySqlConnection,
    matches: Option<&Matches>,
    bounds: &Bounds,
    cells: &[RangeInclusive<i64>],
    most: usize,
) -> sqlx::Result<Vec<Vec<i64>>> {
    let mut groups = vec![Vec::new(); cells.len()];
    let mut unsettled: Vec<usize> = (0..cells.len()).collect();
    let mut of_each = 4;
    while !unsettled.is_empty() {
        let found = of_cells(conn, bounds, cells, &unsettled, of_each).await?;
        let mut cut = Vec::new();
        for (at, mut group) in unsettled.into_iter().zip(found) {
            if group.len() == of_each {
                cut.push(at);
            }
            if let Some(matches) = matches {
                group.retain(|ord| matches.contains(*ord));
            }
            groups[at] = group;
        }
        // A cell that is cut is settled when it lasts as many rounds as `spread` takes. Reading
        // more of others can only make these fewer.
        let rounds = rounds(&groups, most);
        cut.retain(|at| rounds.is_none_or(|rounds| groups[*at].len() < rounds));
        unsettled = cut;
        of_each *= 4;
    }
    Ok(groups)
}

/// The spots in the box of each of these cells of its grid, by code and id, at most `of_each`.
async fn of_cells(
    conn: &mut MySqlConnection,
    bounds: &Bounds,
    cells: &[RangeInclusive<i64>],
    wanted: &[usize],
    of_each: usize,
) -> sqlx::Result<Vec<Vec<i64>>> {
    let mut groups = Vec::with_capacity(wanted.len());
    for wanted in wanted.chunks(CELLS_AT_ONCE) {
        let cells: Vec<_> = wanted.iter().map(|at| &cells[*at]).collect();
        let first = groups.len();
        groups.resize_with(first + cells.len(), Vec::new);
        let sql = of_cells_sql(bounds, &cells, of_each);
        let rows: Vec<(i64, i64, i64, i64)> =
            sqlx::query_as(AssertSqlSafe(sql)).persistent(false).fetch_all(&mut *conn).await?;
        let mut rows: Vec<_> =
            rows.into_iter().map(|(at, cell, id, ord)| (at, (cell, id), ord)).collect();
        rows.sort_unstable();
        for (at, _, ord) in rows {
            if let Some(group) = usize::try_from(at).ok().and_then(|at| groups.get_mut(first + at))
            {
                group.push(ord);
            }
        }
    }
    Ok(groups)
}

/// A branch per cell: in each the server stops after `of_each` rows of the index.
pub(super) fn of_cells_sql(
    bounds: &Bounds,
    cells: &[&RangeInclusive<i64>],
    of_each: usize,
) -> String {
    let inside = inside(bounds);
    let mut sql = String::new();
    for (at, cell) in cells.iter().enumerate() {
        let union = if at == 0 { "" } else { " UNION ALL " };
        let (first, last) = (cell.start(), cell.end());
        write!(
            sql,
            "{union}(SELECT {at} AS place, s.cell, s.id, s.ord
             FROM tour_spots AS s FORCE INDEX (tour_spots_by_cell)
             WHERE s.cell BETWEEN {first} AND {last} AND {inside}
             ORDER BY s.cell, s.id LIMIT {of_each})"
        )
        .expect("a String takes whatever is written to it");
    }
    sql
}

async fn looked_up(
    conn: &mut MySqlConnection,
    matches: &Matches,
    bounds: &Bounds,
) -> sqlx::Result<Vec<(i64, i64)>> {
    sqlx::query_as(LOOKED_UP)
        .bind(json_numbers(matches.ords()))
        .bind(bounds.min().lat())
        .bind(bounds.max().lat())
        .bind(bounds.min().lng())
        .bind(bounds.max().lng())
        .fetch_all(conn)
        .await
}
