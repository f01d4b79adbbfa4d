//! The search index in MySQL.
//!
//! `spot_grams` is ordered by gram, so that looking one up is one walk over neighbouring rows. An
//! import pays for it by touching one leaf per gram.

use std::collections::HashMap;

use sqlx::mysql::MySqlConnection;
use sqlx::{MySql, QueryBuilder};

use super::super::spot_index::{ChunkChanges, GramChanges, Slots, json_numbers};
use super::numbers;
use crate::domain::search::Gram;

/// Rows per statement: four values each, far below MySQL's limit of 65,535.
const ROWS_PER_INSERT: usize = 500;

pub(super) const STORED: &str = concat!(
    "SELECT g.gram, g.slots FROM ",
    numbers!(),
    " STRAIGHT_JOIN spot_grams AS g ON g.gram = w.v AND g.chunk = ?"
);

/// Writes the changes, each row once, in the order of the B-tree.
pub(super) async fn write(conn: &mut MySqlConnection, changes: GramChanges) -> sqlx::Result<()> {
    for of_chunk in changes.by_chunk() {
        write_chunk(conn, &of_chunk).await?;
    }
    Ok(())
}

async fn write_chunk(conn: &mut MySqlConnection, changes: &ChunkChanges) -> sqlx::Result<()> {
    let chunk = changes.chunk();
    let before = stored(conn, chunk, changes.grams()).await?;
    let (emptied, written): (Vec<_>, Vec<_>) =
        changes.apply(before).into_iter().partition(|row| row.count == 0);
    for rows in written.chunks(ROWS_PER_INSERT) {
        let mut insert =
            QueryBuilder::<MySql>::new("INSERT INTO spot_grams (gram, chunk, spots, slots) ");
        insert.push_values(rows, |mut row, gram| {
            row.push_bind(gram.gram)
                .push_bind(chunk)
                .push_bind(gram.count)
                .push_bind(gram.slots.as_slice());
        });
        insert.push(" ON DUPLICATE KEY UPDATE spots = VALUES(spots), slots = VALUES(slots)");
        // Only the statement of full size comes again; the others would push it out of the cache.
        let full = rows.len() == ROWS_PER_INSERT;
        insert.build().persistent(full).execute(&mut *conn).await?;
    }
    if !emptied.is_empty() {
        sqlx::query(concat!(
            "DELETE g FROM ",
            numbers!(),
            " STRAIGHT_JOIN spot_grams AS g ON g.gram = w.v AND g.chunk = ?"
        ))
        .bind(json_numbers(emptied.iter().map(|row| row.gram)))
        .bind(chunk)
        .execute(conn)
        .await?;
    }
    Ok(())
}

async fn stored(
    conn: &mut MySqlConnection,
    chunk: i64,
    grams: impl Iterator<Item = Gram>,
) -> sqlx::Result<HashMap<Gram, Slots>> {
    let rows: Vec<(Gram, Vec<u8>)> =
        sqlx::query_as(STORED).bind(json_numbers(grams)).bind(chunk).fetch_all(conn).await?;
    rows.into_iter().map(|(gram, slots)| Ok((gram, Slots::decode(&slots)?))).collect()
}
