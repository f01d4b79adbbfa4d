//! The search index in SQLite: which spots have a gram.
//!
//! `spot_grams` has one row per gram and chunk of [`CHUNK`] spots. An import adds spots with
//! neighbouring `ord`s, so that a batch touches the rows of one chunk or two, which lie together in
//! the B-tree, instead of one leaf per gram all over it. A look-up is one probe per chunk: 245 for
//! a million spots.

use std::collections::HashMap;

use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use crate::domain::search::{Gram, push_grams};
use crate::domain::tag::{Tag, TagSet};

/// Spots per chunk.
pub(super) const CHUNK: i64 = 4_096;
const WORDS: usize = CHUNK as usize / 64;
const BITMAP_BYTES: usize = CHUNK as usize / 8;
/// Fewer spots are kept as a list: it is shorter than the map of bits.
const LIST_BELOW: u32 = 256;
/// Rows per statement: four values each, far below SQLite's limit of 32,766.
const ROWS_PER_INSERT: usize = 500;

/// Every spot has it.
pub(super) const EVERY_SPOT: Gram = -1;

/// The gram that stands for a tag.
pub(super) const fn tag_gram(tag: Tag) -> Gram {
    -2 - tag as Gram
}

/// A set of the places of one chunk.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Slots(Box<[u64; WORDS]>);

impl Default for Slots {
    fn default() -> Self {
        Self(Box::new([0; WORDS]))
    }
}

impl Slots {
    pub(super) fn decode(bytes: &[u8]) -> sqlx::Result<Self> {
        let mut slots = Self::default();
        if bytes.len() == BITMAP_BYTES {
            for (word, bytes) in slots.0.iter_mut().zip(bytes.as_chunks::<8>().0) {
                *word = u64::from_le_bytes(*bytes);
            }
            return Ok(slots);
        }
        let (list, rest) = bytes.as_chunks::<2>();
        for slot in list {
            let slot = u16::from_le_bytes(*slot);
            if i64::from(slot) >= CHUNK {
                return Err(sqlx::Error::Decode("a place outside its chunk in spot_grams".into()));
            }
            slots.insert(slot);
        }
        if rest.is_empty() {
            Ok(slots)
        } else {
            Err(sqlx::Error::Decode("a cut list in spot_grams".into()))
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        if self.count() >= LIST_BELOW {
            self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
        } else {
            self.iter().flat_map(u16::to_le_bytes).collect()
        }
    }

    pub(super) fn insert(&mut self, slot: u16) {
        self.0[usize::from(slot) / 64] |= 1 << (slot % 64);
    }

    pub(super) fn remove(&mut self, slot: u16) {
        self.0[usize::from(slot) / 64] &= !(1 << (slot % 64));
    }

    pub(super) fn contains(&self, slot: u16) -> bool {
        self.0[usize::from(slot) / 64] & (1 << (slot % 64)) != 0
    }

    pub(super) fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    pub(super) fn intersect(&mut self, other: &Self) {
        for (word, other) in self.0.iter_mut().zip(other.0.iter()) {
            *word &= other;
        }
    }

    pub(super) fn unite(&mut self, other: &Self) {
        for (word, other) in self.0.iter_mut().zip(other.0.iter()) {
            *word |= other;
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u16> {
        self.0.iter().enumerate().flat_map(|(index, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                (left != 0).then(|| {
                    let bit = left.trailing_zeros();
                    left &= left - 1;
                    (index * 64) as u16 + bit as u16
                })
            })
        })
    }
}

/// The chunk of a spot, and its place there.
pub(super) fn place(ord: i64) -> (i64, u16) {
    (ord / CHUNK, (ord % CHUNK) as u16)
}

/// What the index knows of a spot.
pub(super) struct Indexed<'a> {
    /// The folded name.
    pub name: &'a str,
    /// The folded address.
    pub address: &'a str,
    /// Its tags.
    pub tags: TagSet,
}

impl Indexed<'_> {
    fn grams(&self) -> Vec<Gram> {
        let mut grams = vec![EVERY_SPOT];
        grams.extend(self.tags.iter().map(tag_gram));
        push_grams(self.name, &mut grams);
        push_grams(self.address, &mut grams);
        grams.sort_unstable();
        grams.dedup();
        grams
    }
}

/// Changes of the index that are written together.
#[derive(Default)]
pub(super) struct GramChanges(Vec<(i64, Gram, u16, bool)>);

impl GramChanges {
    /// Notes that a spot's texts and tags change from `old`, none for a new spot, to `new`.
    pub(super) fn note(&mut self, ord: i64, old: Option<&Indexed<'_>>, new: &Indexed<'_>) {
        let (chunk, slot) = place(ord);
        let new = new.grams();
        let old = old.map(Indexed::grams).unwrap_or_default();
        let lost = old.iter().filter(|gram| new.binary_search(gram).is_err());
        self.0.extend(lost.map(|gram| (chunk, *gram, slot, false)));
        let gained = new.iter().filter(|gram| old.binary_search(gram).is_err());
        self.0.extend(gained.map(|gram| (chunk, *gram, slot, true)));
    }

    /// Writes the changes, each row once, in the order of the B-tree.
    pub(super) async fn write(mut self, conn: &mut SqliteConnection) -> sqlx::Result<()> {
        self.0.sort_unstable();
        for of_chunk in self.0.chunk_by(|one, other| one.0 == other.0) {
            write_chunk(conn, of_chunk[0].0, of_chunk).await?;
        }
        Ok(())
    }
}

async fn write_chunk(
    conn: &mut SqliteConnection,
    chunk: i64,
    changes: &[(i64, Gram, u16, bool)],
) -> sqlx::Result<()> {
    let of_grams: Vec<_> = changes.chunk_by(|one, other| one.1 == other.1).collect();
    let mut before = stored(conn, chunk, of_grams.iter().map(|of_gram| of_gram[0].1)).await?;
    let mut written = Vec::with_capacity(of_grams.len());
    let mut emptied = Vec::new();
    for of_gram in of_grams {
        let gram = of_gram[0].1;
        let mut slots = before.remove(&gram).unwrap_or_default();
        for (_, _, slot, has) in of_gram {
            if *has {
                slots.insert(*slot);
            } else {
                slots.remove(*slot);
            }
        }
        match slots.count() {
            0 => emptied.push(gram),
            count => written.push((gram, count, slots.encode())),
        }
    }
    for rows in written.chunks(ROWS_PER_INSERT) {
        let mut insert = QueryBuilder::<Sqlite>::new(
            "INSERT OR REPLACE INTO spot_grams (chunk, gram, spots, slots) ",
        );
        insert.push_values(rows, |mut row, (gram, count, slots)| {
            row.push_bind(chunk).push_bind(*gram).push_bind(*count).push_bind(slots.as_slice());
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
        .bind(json_numbers(emptied))
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

/// A JSON array of numbers: the way to hand SQLite a list as one value.
pub(super) fn json_numbers(numbers: impl IntoIterator<Item = i64>) -> String {
    use std::fmt::Write as _;
    let mut json = String::from("[");
    for number in numbers {
        if json.len() > 1 {
            json.push(',');
        }
        write!(json, "{number}").expect("a String takes whatever is written to it");
    }
    json.push(']');
    json
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn slots_are_a_set_that_reads_back(
            members in proptest::collection::btree_set(0_u16..4_096, 0..600),
            gone in proptest::collection::vec(0_u16..4_096, 0..50),
        ) {
            let mut slots = Slots::default();
            members.iter().for_each(|slot| slots.insert(*slot));
            gone.iter().for_each(|slot| slots.remove(*slot));
            let left: BTreeSet<u16> =
                members.into_iter().filter(|slot| !gone.contains(slot)).collect();
            prop_assert_eq!(slots.iter().collect::<BTreeSet<_>>(), left.clone());
            prop_assert_eq!(slots.count() as usize, left.len());
            let encoded = slots.encode();
            prop_assert!(encoded.len() <= BITMAP_BYTES);
            prop_assert!(Slots::decode(&encoded).unwrap() == slots);
        }
    }

    #[test]
    fn damaged_slots_are_an_error() {
        assert!(Slots::decode(&[0]).is_err());
        assert!(Slots::decode(&[0, 0x10]).is_err());
    }

    #[test]
    fn numbers_are_a_json_array() {
        assert_eq!(json_numbers([]), "[]");
        assert_eq!(json_numbers([1, -2]), "[1,-2]");
    }
}
