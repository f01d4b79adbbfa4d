//! The search index in SQLite.
//!
//! `spot_grams` is ordered by chunk: an import adds spots with neighbouring `ord`s, so that a batch
//! touches the rows of one chunk or two, which lie together in the B-tree, instead of one leaf per
//! gram all over it. A look-up is one probe per chunk.

use std::collections::HashMap;

use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::super::spot_index::{ChunkChanges, GramChanges, Slots, json_numbers};
use crate::domain::search::Gram;

/// Rows per statement: four values each, far below SQLite's limit of 32,766.
const ROWS_PER_INSERT: usize = 500;

/// Writes the changes, each row once, in the order of the B-tree.
pub(super) async fn write(conn: &mut SqliteConnection, changes: GramChanges) -> sqlx::Result<()> {
    for of_chunk in changes.by_chunk() {
        write_chunk(conn, &of_chunk).await?;
    }
    Ok(())
}

async fn write_chunk(conn: &mut SqliteConnection, changes: &ChunkChanges) -> sqlx::Result<()> {
    let chunk = changes.chunk();
    let before = stored(conn, chunk, changes.grams()).await?;
    let (emptied, written): (Vec<_>, Vec<_>) =
        changes.apply(before).into_iter().partition(|row| row.count == 0);
    for rows in written.chunks(ROWS_PER_INSERT) {
        let mut insert = QueryBuilder::<Sqlite>::new(
            "INSERT OR REPLACE INTO spot_grams (chunk, gram, spots, slots) ",
        );
        insert.push_values(rows, |mut row, gram| {
            row.push_bind(chunk)
                .push_bind(gram.gram)
                .push_bind(gram.count)
                .push_bind(gram.slots.as_slice());
        });
        // Only the statement of full size comes again; the others would push it out of the cache.
        let full = rows.len() == ROWS_PER_INSERT;
        insert.build().persistent(full).execute(&mut *conn).await?;
    }
    if !emptied.is_empty() {
        sqlx::query(
            "DELETE FROM spot_grams WHERE chunk = ?1 AND gram IN (SELECT value FROM json_each(?2))",
        )
        .bind(chunk)
        .bind(json_numbers(emptied.iter().map(|row| row.gram)))
        .execute(conn)
        .await?;
    }
    Ok(())
}

async fn stored(
    conn: &mut SqliteConnection,
    chunk: i64,
    grams: impl Iterator<Item = Gram>,
) -> sqlx::Result<HashMap<Gram, Slots>> {
    let rows: Vec<(Gram, Vec<u8>)> = sqlx::query_as(
        "SELECT g.gram, g.slots
         FROM json_each(?2) AS wanted
         CROSS JOIN spot_grams AS g ON g.chunk = ?1 AND g.gram = wanted.value",
    )
    .bind(chunk)
    .bind(json_numbers(grams))
    .fetch_all(conn)
    .await?;
    rows.into_iter().map(|(gram, slots)| Ok((gram, Slots::decode(&slots)?))).collect()
}
