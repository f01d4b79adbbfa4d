//! Sets of spots, and what the rows of several grams come to.

use super::EVERY_SPOT;
use super::slots::{CHUNK, Slots, place};
use crate::domain::search::Gram;

/// A set of spots, by `ord`.
#[derive(Clone, Default)]
pub(in crate::store) struct Matches(Vec<(i64, Slots)>);

impl Matches {
    pub(in crate::store) fn from_ords(mut ords: Vec<i64>) -> Self {
        ords.sort_unstable();
        let mut chunks: Vec<(i64, Slots)> = Vec::new();
        for ord in ords {
            let (chunk, slot) = place(ord);
            if chunks.last().is_none_or(|(last, _)| *last != chunk) {
                chunks.push((chunk, Slots::default()));
            }
            if let Some((_, slots)) = chunks.last_mut() {
                slots.insert(slot);
            }
        }
        Self(chunks)
    }

    pub(in crate::store) fn count(&self) -> u64 {
        self.0.iter().map(|(_, slots)| u64::from(slots.count())).sum()
    }

    /// What it takes, about.
    pub(in crate::store) fn bytes(&self) -> usize {
        // The map of bits, its place, and what the allocator adds.
        64 + self.0.len() * (CHUNK as usize / 8 + 32)
    }

    pub(in crate::store) fn contains(&self, ord: i64) -> bool {
        let (chunk, slot) = place(ord);
        self.0
            .binary_search_by_key(&chunk, |(chunk, _)| *chunk)
            .is_ok_and(|at| self.0[at].1.contains(slot))
    }

    /// The spots, ascending.
    pub(in crate::store) fn ords(&self) -> impl Iterator<Item = i64> {
        self.0.iter().flat_map(|(chunk, slots)| {
            slots.iter().map(move |slot| chunk * CHUNK + i64::from(slot))
        })
    }

    pub(in crate::store) fn retain_in(&mut self, other: &Self) {
        self.0.retain_mut(|(chunk, slots)| {
            match other.0.binary_search_by_key(chunk, |(chunk, _)| *chunk) {
                Ok(at) => slots.intersect(&other.0[at].1),
                Err(_) => return false,
            }
            slots.count() > 0
        });
    }
}

/// The spots that have all required grams, and one of the tags if tags are asked for; `rows` are
/// of those grams and tags, each row's chunk, gram and slots.
pub(in crate::store) fn combine<B: AsRef<[u8]>>(
    mut rows: Vec<(i64, Gram, B)>,
    required: usize,
    tagged: bool,
) -> sqlx::Result<Matches> {
    rows.sort_unstable_by_key(|row| row.0);
    let mut matches = Matches::default();
    for rows in rows.chunk_by(|one, other| one.0 == other.0) {
        if let Some(slots) = combine_chunk(rows, required, tagged)? {
            matches.0.push((rows[0].0, slots));
        }
    }
    Ok(matches)
}

/// Within one chunk: the spots that have all required grams, and one of the tags if tags are asked
/// for. Tags are the grams below [`EVERY_SPOT`].
fn combine_chunk<B: AsRef<[u8]>>(
    rows: &[(i64, Gram, B)],
    required: usize,
    tagged: bool,
) -> sqlx::Result<Option<Slots>> {
    let mut of_text: Option<Slots> = None;
    let mut of_tags = Slots::default();
    let mut grams = 0;
    for (_, gram, slots) in rows {
        let slots = Slots::decode(slots.as_ref())?;
        if *gram < EVERY_SPOT {
            of_tags.unite(&slots);
        } else {
            grams += 1;
            match &mut of_text {
                Some(all) => all.intersect(&slots),
                None => of_text = Some(slots),
            }
        }
    }
    if grams < required {
        return Ok(None);
    }
    let slots = match (of_text, tagged) {
        (Some(mut slots), true) => {
            slots.intersect(&of_tags);
            slots
        }
        (Some(slots), false) => slots,
        (None, _) => of_tags,
    };
    Ok((slots.count() > 0).then_some(slots))
}
