//! What changes in the index with a spot, put together per row.

use std::collections::HashMap;

use super::slots::{Slots, place};
use super::{EVERY_SPOT, tag_gram};
use crate::domain::search::{Gram, push_grams};
use crate::domain::tag::TagSet;

/// What the index knows of a spot.
pub(in crate::store) struct Indexed<'a> {
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
pub(in crate::store) struct GramChanges(Vec<(i64, Gram, u16, bool)>);

/// A row to write, or to delete when its set has become empty.
pub(in crate::store) struct GramRow {
    pub(in crate::store) gram: Gram,
    pub(in crate::store) count: u32,
    pub(in crate::store) slots: Vec<u8>,
}

impl GramChanges {
    /// Notes that a spot's texts and tags change from `old`, none for a new spot, to `new`.
    pub(in crate::store) fn note(
        &mut self,
        ord: i64,
        old: Option<&Indexed<'_>>,
        new: &Indexed<'_>,
    ) {
        let (chunk, slot) = place(ord);
        let new = new.grams();
        let old = old.map(Indexed::grams).unwrap_or_default();
        let lost = old.iter().filter(|gram| new.binary_search(gram).is_err());
        self.0.extend(lost.map(|gram| (chunk, *gram, slot, false)));
        let gained = new.iter().filter(|gram| old.binary_search(gram).is_err());
        self.0.extend(gained.map(|gram| (chunk, *gram, slot, true)));
    }

    /// The changes of each chunk, in the order of chunks.
    pub(in crate::store) fn by_chunk(mut self) -> Vec<ChunkChanges> {
        self.0.sort_unstable();
        let chunks = self.0.chunk_by(|one, other| one.0 == other.0);
        chunks.map(|of_chunk| ChunkChanges(of_chunk.to_vec())).collect()
    }
}

/// Changes within one chunk.
pub(in crate::store) struct ChunkChanges(Vec<(i64, Gram, u16, bool)>);

impl ChunkChanges {
    pub(in crate::store) fn chunk(&self) -> i64 {
        self.0.first().map_or(0, |change| change.0)
    }

    /// The grams whose rows change, ascending.
    pub(in crate::store) fn grams(&self) -> impl Iterator<Item = Gram> {
        self.0.chunk_by(|one, other| one.1 == other.1).map(|of_gram| of_gram[0].1)
    }

    /// The rows as they become of those that are stored.
    pub(in crate::store) fn apply(&self, mut stored: HashMap<Gram, Slots>) -> Vec<GramRow> {
        let of_grams = self.0.chunk_by(|one, other| one.1 == other.1);
        of_grams
            .map(|of_gram| {
                let gram = of_gram[0].1;
                let mut slots = stored.remove(&gram).unwrap_or_default();
                for (_, _, slot, has) in of_gram {
                    if *has {
                        slots.insert(*slot);
                    } else {
                        slots.remove(*slot);
                    }
                }
                GramRow { gram, count: slots.count(), slots: slots.encode() }
            })
            .collect()
    }
}
