//! The spots in a box of the map.

use std::ops::RangeInclusive;

use sqlx::SqliteConnection;

use super::super::spot_index::{Matches, grouped, json_numbers, rounds};
use super::search::numbers;
use crate::domain::geo::{Bounds, spread};

/// Up to so many matches are looked up one by one; more are looked for in the box.
const FEW: u64 = 20_000;

const OF_CELLS: &str = "SELECT (SELECT json_group_array(ord) FROM (
     SELECT s.ord FROM tour_spots AS s INDEXED BY tour_spots_by_cell
     WHERE s.cell BETWEEN g.value AND g.value + ?2
     AND s.lat BETWEEN ?3 AND ?4 AND s.lng BETWEEN ?5 AND ?6
     ORDER BY s.cell, s.id LIMIT ?7))
     FROM json_each(?1) AS g ORDER BY g.key";
const LOOKED_UP: &str = "SELECT s.cell, s.ord FROM json_each(?1) AS m
     CROSS JOIN tour_spots AS s ON s.ord = m.value
     WHERE s.lat BETWEEN ?2 AND ?3 AND s.lng BETWEEN ?4 AND ?5
     ORDER BY s.cell, s.id";

/// The `ord`s of at most `most` spots in the box, out of `matches` or of all spots.
pub(super) async fn in_box(
    conn: &mut SqliteConnection,
    matches: Option<&Matches>,
    bounds: &Bounds,
    most: usize,
) -> sqlx::Result<Vec<i64>> {
    let groups = match matches {
        Some(matches) if matches.count() <= FEW => looked_up(conn, matches, bounds, most).await?,
        _ => firsts(conn, matches, bounds, most).await?,
    };
    Ok(spread(groups, most))
}

/// The matches in every cell of the grid; of a crowded cell only the first ones, as many as
/// [`spread`] can take.
async fn firsts(
    conn: &mut SqliteConnection,
    matches: Option<&Matches>,
    bounds: &Bounds,
    most: usize,
) -> sqlx::Result<Vec<Vec<i64>>> {
    let cells = bounds.grid(most);
    let mut groups = vec![Vec::new(); cells.len()];
    let mut unsettled: Vec<usize> = (0..cells.len()).collect();
    let mut of_each = 4;
    while !unsettled.is_empty() {
        let asked = unsettled.iter().map(|at| &cells[*at]);
        let found = of_cells(conn, bounds, asked, of_each).await?;
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
    conn: &mut SqliteConnection,
    bounds: &Bounds,
    cells: impl Iterator<Item = &RangeInclusive<i64>> + Clone,
    of_each: usize,
) -> sqlx::Result<Vec<Vec<i64>>> {
    // All cells of a grid are equally large.
    let extent = cells.clone().next().map_or(0, |cell| cell.end() - cell.start());
    let groups: Vec<String> = sqlx::query_scalar(OF_CELLS)
        .bind(json_numbers(cells.map(|cell| *cell.start())))
        .bind(extent)
        .bind(bounds.min().lat())
        .bind(bounds.max().lat())
        .bind(bounds.min().lng())
        .bind(bounds.max().lng())
        .bind(i64::try_from(of_each).unwrap_or(i64::MAX))
        .fetch_all(conn)
        .await?;
    groups.iter().map(|group| numbers(group)).collect()
}

async fn looked_up(
    conn: &mut SqliteConnection,
    matches: &Matches,
    bounds: &Bounds,
    most: usize,
) -> sqlx::Result<Vec<Vec<i64>>> {
    let inside: Vec<(i64, i64)> = sqlx::query_as(LOOKED_UP)
        .bind(json_numbers(matches.ords()))
        .bind(bounds.min().lat())
        .bind(bounds.max().lat())
        .bind(bounds.min().lng())
        .bind(bounds.max().lng())
        .fetch_all(conn)
        .await?;
    Ok(grouped(&bounds.grid(most), inside))
}

/// What this module asks, for the test of the query plans.
#[cfg(test)]
pub(super) const STATEMENTS: [&str; 2] = [OF_CELLS, LOOKED_UP];
