//! Changing spots: rows, index and events in one transaction.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use sqlx::mysql::MySqlConnection;
use sqlx::{MySql, QueryBuilder, Row as _};

use super::super::spot_index::{GramChanges, Indexed, json_numbers};
use super::spots::{spot_columns, spot_of};
use super::{grams, numbers, record};
use crate::app::StoreError;
use crate::app::spots::{Upserted, upserted};
use crate::domain::geo;
use crate::domain::search::fold;
use crate::domain::spot::{Spot, SpotContent, SpotDraft, SpotId};

/// Rows per statement: twelve values each, far below MySQL's limit of 65,535.
const ROWS_PER_INSERT: usize = 250;
/// Between name and address: in no UTF-8.
const BOUNDARY: u8 = 0xFF;

pub(super) const STORED: &str = concat!(
    "SELECT s.ord, ",
    spot_columns!(),
    " FROM ",
    numbers!(),
    " STRAIGHT_JOIN tour_spots AS s FORCE INDEX (tour_spots_by_id) ON s.id = w.v"
);

/// Adds or changes spots in their order, with their events, inside the caller's transaction. One
/// such transaction runs at a time.
pub(super) async fn upsert(
    conn: &mut MySqlConnection,
    drafts: &[SpotDraft],
    now: DateTime<Utc>,
) -> Result<Upserted, StoreError> {
    let mut spots: i64 = sqlx::query_scalar("SELECT spots FROM catalogue WHERE id = 1 FOR UPDATE")
        .fetch_one(&mut *conn)
        .await?;
    let mut events = Vec::new();
    for run in runs_without_repeats(drafts) {
        let changed = upsert_run(conn, run, &mut spots).await?;
        events.extend(changed.iter().map(|spot| upserted(spot, now)));
    }
    let changed = events.len() as u64;
    if changed > 0 {
        sqlx::query("UPDATE catalogue SET revision = revision + 1, spots = ? WHERE id = 1")
            .bind(spots)
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
    folded: Vec<u8>,
}

/// `spots` is how many there are, and so the next one's `ord`.
async fn upsert_run(
    conn: &mut MySqlConnection,
    drafts: &[SpotDraft],
    spots: &mut i64,
) -> sqlx::Result<Vec<Spot>> {
    let before = stored(conn, drafts).await?;
    let mut indexed = GramChanges::default();
    let mut changes = Vec::with_capacity(drafts.len());
    for draft in drafts {
        let old = before.get(&draft.id);
        if old.is_some_and(|(_, spot)| spot.content == draft.content) {
            continue;
        }
        let ord = old.map_or(*spots, |(ord, _)| *ord);
        if old.is_none() {
            *spots += 1;
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
        let folded = [name.as_bytes(), &[BOUNDARY], address.as_bytes()].concat();
        changes.push(Change { ord, spot, folded });
    }
    write_rows(conn, &changes).await?;
    grams::write(conn, indexed).await?;
    Ok(changes.into_iter().map(|change| change.spot).collect())
}

fn folded(content: &SpotContent) -> (String, String) {
    (fold(content.name()), fold(content.address()))
}

async fn stored(
    conn: &mut MySqlConnection,
    drafts: &[SpotDraft],
) -> sqlx::Result<HashMap<SpotId, (i64, Spot)>> {
    let rows = sqlx::query(STORED)
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

async fn write_rows(conn: &mut MySqlConnection, changes: &[Change]) -> sqlx::Result<()> {
    for rows in changes.chunks(ROWS_PER_INSERT) {
        // Only statements of full size come again; the others would push them out of the cache.
        let full = rows.len() == ROWS_PER_INSERT;
        let mut insert = QueryBuilder::<MySql>::new(
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
            " ON DUPLICATE KEY UPDATE version = VALUES(version), name = VALUES(name), \
             address = VALUES(address), lat = VALUES(lat), lng = VALUES(lng), \
             cell = VALUES(cell), tags = VALUES(tags), image_url = VALUES(image_url), \
             description = VALUES(description), phone_number = VALUES(phone_number)",
        );
        insert.build().persistent(full).execute(&mut *conn).await?;

        let mut texts = QueryBuilder::<MySql>::new("INSERT INTO spot_texts (ord, folded) ");
        texts.push_values(rows, |mut row, change| {
            row.push_bind(change.ord).push_bind(change.folded.as_slice());
        });
        texts.push(" ON DUPLICATE KEY UPDATE folded = VALUES(folded)");
        texts.build().persistent(full).execute(&mut *conn).await?;
    }
    Ok(())
}
