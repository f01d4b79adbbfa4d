//! Changing spots: rows, index and events in one transaction.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use sqlx::{QueryBuilder, Row as _, Sqlite, SqliteConnection};

use super::super::spot_index::{GramChanges, Indexed, json_numbers};
use super::spots::{spot_columns, spot_of};
use super::{grams, record};
use crate::app::StoreError;
use crate::app::spots::{Upserted, upserted};
use crate::domain::geo;
use crate::domain::search::fold;
use crate::domain::spot::{Spot, SpotContent, SpotDraft, SpotId};

/// Rows per statement: twelve values each, far below SQLite's limit of 32,766.
const ROWS_PER_INSERT: usize = 250;

/// Makes room for the many pages that full batches touch all over the indexes: up to 64 MiB of
/// cache, and a write-ahead log of up to as much before it is copied into the file, so that a page
/// which many batches change is copied once. Both stay with the writing connection; the cache is
/// taken as it is needed.
pub(super) async fn prepare_for_many(conn: &mut SqliteConnection) -> sqlx::Result<()> {
    for pragma in ["PRAGMA cache_size = -65536", "PRAGMA wal_autocheckpoint = 16000"] {
        sqlx::query(pragma).execute(&mut *conn).await?;
    }
    Ok(())
}

/// Adds or changes spots in their order, with their events, inside the caller's transaction.
pub(super) async fn upsert(
    conn: &mut SqliteConnection,
    drafts: &[SpotDraft],
    now: DateTime<Utc>,
) -> Result<Upserted, StoreError> {
    let mut events = Vec::new();
    for run in runs_without_repeats(drafts) {
        let changed = upsert_run(conn, run).await?;
        events.extend(changed.iter().map(|spot| upserted(spot, now)));
    }
    let changed = events.len() as u64;
    if changed > 0 {
        sqlx::query("UPDATE catalogue SET revision = revision + 1 WHERE only = 1")
            .execute(&mut *conn)
            .await?;
        record(conn, &events, now).await?;
    }
    Ok(Upserted { changed, unchanged: drafts.len() as u64 - changed })
}

/// Cuts a batch before every draft whose id is in the current piece already, so that each piece
/// can be written at once and the later draft still comes later.
fn runs_without_repeats(drafts: &[SpotDraft]) -> Vec<&[SpotDraft]> {
    let mut runs = Vec::new();
    let mut seen = HashSet::new();
    let mut start = 0;
    for (index, draft) in drafts.iter().enumerate() {
        if !seen.insert(draft.id) {
            runs.push(&drafts[start..index]);
            start = index;
            seen.clear();
            seen.insert(draft.id);
        }
    }
    if start < drafts.len() {
        runs.push(&drafts[start..]);
    }
    runs
}

/// A spot as it will be.
struct Change {
    ord: i64,
    spot: Spot,
    name: String,
    address: String,
}

async fn upsert_run(conn: &mut SqliteConnection, drafts: &[SpotDraft]) -> sqlx::Result<Vec<Spot>> {
    let before = stored(conn, drafts).await?;
    let mut next_ord: i64 = sqlx::query_scalar("SELECT coalesce(max(ord), -1) + 1 FROM tour_spots")
        .fetch_one(&mut *conn)
        .await?;
    let mut indexed = GramChanges::default();
    let mut changes = Vec::with_capacity(drafts.len());
    for draft in drafts {
        let old = before.get(&draft.id);
        if old.is_some_and(|(_, spot)| spot.content == draft.content) {
            continue;
        }
        let ord = old.map_or(next_ord, |(ord, _)| *ord);
        if old.is_none() {
            next_ord += 1;
        }
        let (name, address) = folded(&draft.content);
        let old_texts = old.map(|(_, spot)| (folded(&spot.content), spot.content.tags()));
        let was = old_texts.as_ref().map(|((name, address), tags)| Indexed {
            name,
            address,
            tags: *tags,
        });
        let is = Indexed { name: &name, address: &address, tags: draft.content.tags() };
        indexed.note(ord, was.as_ref(), &is);
        let version = old.map_or(0, |(_, spot)| spot.version) + 1;
        let spot = Spot { id: draft.id, version, content: draft.content.clone() };
        changes.push(Change { ord, spot, name, address });
    }
    write_rows(conn, &changes).await?;
    grams::write(conn, indexed).await?;
    Ok(changes.into_iter().map(|change| change.spot).collect())
}

fn folded(content: &SpotContent) -> (String, String) {
    (fold(content.name()), fold(content.address()))
}

async fn stored(
    conn: &mut SqliteConnection,
    drafts: &[SpotDraft],
) -> sqlx::Result<HashMap<SpotId, (i64, Spot)>> {
    let rows = sqlx::query(concat!(
        "SELECT s.ord, ",
        spot_columns!(),
        " FROM json_each(?1) AS wanted CROSS JOIN tour_spots AS s ON s.id = wanted.value"
    ))
    .bind(json_numbers(drafts.iter().map(|draft| draft.id.number())))
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|row| {
            let spot = spot_of(row)?;
            Ok((spot.id, (row.try_get("ord")?, spot)))
        })
        .collect()
}

async fn write_rows(conn: &mut SqliteConnection, changes: &[Change]) -> sqlx::Result<()> {
    for rows in changes.chunks(ROWS_PER_INSERT) {
        // Only statements of full size come again; the others would push them out of the cache.
        let full = rows.len() == ROWS_PER_INSERT;
        let mut insert = QueryBuilder::<Sqlite>::new(
            "INSERT INTO tour_spots (ord, id, version, name, address, lat, lng, cell, tags, \
             image_url, description, phone_number) ",
        );
        insert.push_values(rows, |mut row, change| {
            let Spot { id, version, content } = &change.spot;
            row.push_bind(change.ord)
                .push_bind(id.number())
                .push_bind(version.cast_signed())
                .push_bind(content.name())
                .push_bind(content.address())
                .push_bind(content.at().lat())
                .push_bind(content.at().lng())
                .push_bind(geo::cell(content.at()))
                .push_bind(content.tags().bits())
                .push_bind(content.image_url())
                .push_bind(content.description())
                .push_bind(content.phone_number());
        });
        insert.push(
            " ON CONFLICT (ord) DO UPDATE SET version = excluded.version, name = excluded.name, \
             address = excluded.address, lat = excluded.lat, lng = excluded.lng, \
             cell = excluded.cell, tags = excluded.tags, image_url = excluded.image_url, \
             description = excluded.description, phone_number = excluded.phone_number",
        );
        insert.build().persistent(full).execute(&mut *conn).await?;

        let mut texts =
            QueryBuilder::<Sqlite>::new("INSERT OR REPLACE INTO spot_texts (ord, name, address) ");
        texts.push_values(rows, |mut row, change| {
            row.push_bind(change.ord).push_bind(&change.name).push_bind(&change.address);
        });
        texts.build().persistent(full).execute(&mut *conn).await?;
    }
    Ok(())
}
