//! Sets of the places of a chunk, and how they are stored.

/// Spots per chunk.
pub(in crate::store) const CHUNK: i64 = 4_096;
const WORDS: usize = CHUNK as usize / 64;
const BITMAP_BYTES: usize = CHUNK as usize / 8;
/// Fewer spots are kept as a list: it is shorter than the map of bits.
const LIST_BELOW: u32 = 256;

/// A set of the places of one chunk.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::store) struct Slots(Box<[u64; WORDS]>);

impl Default for Slots {
    fn default() -> Self {
        Self(Box::new([0; WORDS]))
    }
}

impl Slots {
    pub(in crate::store) fn decode(bytes: &[u8]) -> sqlx::Result<Self> {
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

    pub(in crate::store) fn encode(&self) -> Vec<u8> {
        if self.count() >= LIST_BELOW {
            self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
        } else {
            self.iter().flat_map(u16::to_le_bytes).collect()
        }
    }

    pub(in crate::store) fn insert(&mut self, slot: u16) {
        self.0[usize::from(slot) / 64] |= 1 << (slot % 64);
    }

    pub(in crate::store) fn remove(&mut self, slot: u16) {
        self.0[usize::from(slot) / 64] &= !(1 << (slot % 64));
    }

    pub(in crate::store) fn contains(&self, slot: u16) -> bool {
        self.0[usize::from(slot) / 64] & (1 << (slot % 64)) != 0
    }

    pub(in crate::store) fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    pub(in crate::store) fn intersect(&mut self, other: &Self) {
        for (word, other) in self.0.iter_mut().zip(other.0.iter()) {
            *word &= other;
        }
    }

    pub(in crate::store) fn unite(&mut self, other: &Self) {
        for (word, other) in self.0.iter_mut().zip(other.0.iter()) {
            *word |= other;
        }
    }

    pub(in crate::store) fn iter(&self) -> impl Iterator<Item = u16> {
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
pub(in crate::store) fn place(ord: i64) -> (i64, u16) {
    (ord / CHUNK, (ord % CHUNK) as u16)
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
}
