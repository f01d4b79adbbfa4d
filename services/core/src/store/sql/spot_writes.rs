//! Changing spots: rows and events in one transaction.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use sqlx::{QueryBuilder, Row as _};

use super::super::json_numbers;
use super::spot_rows::{spot_columns, spot_of};
use super::{Connection, Db, record};
use crate::app::StoreError;
use crate::app::spots::{Upserted, upserted};
use crate::domain::spot::{Spot, SpotDraft, SpotId};

/// Rows per statement: twelve values each, far below the limits of SQLite (32,766) and MySQL (65,535).
const ROWS_PER_INSERT: usize = 250;

pub(super) const STORED: &str = concat!(
    "SELECT s.doc_id, ",
    spot_columns!(),
    " FROM ",
    numbers!(),
    join!(),
    "tour_spots AS s",
    by_index!(tour_spots_by_id),
    " ON s.id = w.v"
);
/// In MySQL it is also a lock until the commit: one transaction changes spots at a time.
const REVISION: &str = either!(
    sqlite: "SELECT revision FROM catalogue",
    mysql: "SELECT revision FROM catalogue FOR UPDATE",
);
const ELSE_UPDATE: &str = either!(
    sqlite: " ON CONFLICT (doc_id) DO UPDATE SET version = excluded.version, name = excluded.name, \
              address = excluded.address, lat = excluded.lat, lng = excluded.lng, \
              tags = excluded.tags, image_url = excluded.image_url, \
              description = excluded.description, phone_number = excluded.phone_number, \
              changed_in = excluded.changed_in",
    mysql: " ON DUPLICATE KEY UPDATE version = VALUES(version), name = VALUES(name), \
             address = VALUES(address), lat = VALUES(lat), lng = VALUES(lng), \
             tags = VALUES(tags), image_url = VALUES(image_url), \
             description = VALUES(description), phone_number = VALUES(phone_number), \
             changed_in = VALUES(changed_in)",
);

/// Adds or changes spots in their order, with their events, in the caller's transaction.
pub(super) async fn upsert(
    conn: &mut Connection,
    drafts: &[SpotDraft],
    now: DateTime<Utc>,
) -> Result<Upserted, StoreError> {
    let before: i64 = sqlx::query_scalar(REVISION).fetch_one(&mut *conn).await?;
    let revision = before + 1;
    let mut events = Vec::new();
    for run in runs_without_repeats(drafts) {
        let changed = upsert_run(conn, run, revision).await?;
        events.extend(changed.iter().map(|spot| upserted(spot, now)));
    }
    let changed = events.len() as u64;
    if changed > 0 {
        sqlx::query("UPDATE catalogue SET revision = ?").bind(revision).execute(&mut *conn).await?;
        record(conn, &events, now).await?;
    }
    Ok(Upserted { changed, unchanged: drafts.len() as u64 - changed })
}

/// Splits a batch before every draft whose id is already in the current piece, so that each piece can be
/// written at once and the drafts of one id stay in order.
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

/// Writes a batch without repeated ids; returns the changed spots.
async fn upsert_run(
    conn: &mut Connection,
    drafts: &[SpotDraft],
    revision: i64,
) -> sqlx::Result<Vec<Spot>> {
    let before = stored(conn, drafts).await?;
    let mut next_doc: i64 =
        sqlx::query_scalar("SELECT COALESCE(MAX(doc_id) + 1, 0) FROM tour_spots")
            .fetch_one(&mut *conn)
            .await?;
    let mut changes = Vec::with_capacity(drafts.len());
    for SpotDraft { id, content } in drafts {
        let (doc, version) = match before.get(id) {
            Some((_, old)) if old.content == *content => continue,
            Some((doc, old)) => (*doc, old.version + 1),
            None => {
                next_doc += 1;
                (next_doc - 1, 1)
            }
        };
        changes.push((doc, Spot { id: *id, version, content: content.clone() }));
    }
    write_rows(conn, &changes, revision).await?;
    Ok(changes.into_iter().map(|(_, spot)| spot).collect())
}

/// The spots that exist, with their doc ids.
async fn stored(
    conn: &mut Connection,
    drafts: &[SpotDraft],
) -> sqlx::Result<HashMap<SpotId, (i64, Spot)>> {
    let rows = sqlx::query(STORED)
        .bind(json_numbers(drafts.iter().map(|draft| draft.id.number())))
        .fetch_all(conn)
        .await?;
    rows.iter()
        .map(|row| {
            let spot = spot_of(row)?;
            Ok((spot.id, (row.try_get("doc_id")?, spot)))
        })
        .collect()
}

async fn write_rows(
    conn: &mut Connection,
    changes: &[(i64, Spot)],
    revision: i64,
) -> sqlx::Result<()> {
    for rows in changes.chunks(ROWS_PER_INSERT) {
        let mut insert = QueryBuilder::<Db>::new(
            "INSERT INTO tour_spots (doc_id, id, version, name, address, lat, lng, tags, \
             image_url, description, phone_number, changed_in) ",
        );
        insert.push_values(rows, |mut row, (doc, Spot { id, version, content })| {
            row.push_bind(doc)
                .push_bind(id.number())
                .push_bind(version.cast_signed())
                .push_bind(content.name())
                .push_bind(content.address())
                .push_bind(content.at().lat())
                .push_bind(content.at().lng())
                .push_bind(content.tags().bits())
                .push_bind(content.image_url())
                .push_bind(content.description())
                .push_bind(content.phone_number())
                .push_bind(revision);
        });
        insert.push(ELSE_UPDATE);
        // Only full-size statements recur; others would evict them from the statement cache.
        let full = rows.len() == ROWS_PER_INSERT;
        insert.build().persistent(full).execute(&mut *conn).await?;
    }
    Ok(())
}
