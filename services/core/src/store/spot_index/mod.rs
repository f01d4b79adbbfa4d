//! The search index of spots as every engine keeps it: which spots have a gram.
//!
//! A spot has an `ord`, a dense number given in the order of arrival. The spots are taken in chunks
//! of 4,096 by `ord`, and a stored row has all spots of one chunk with one gram, as a list or a
//! map of bits: looking a gram up in a million spots reads 245 rows.

mod changes;
mod map;
mod matches;
mod recent;
mod resident;
mod slots;

pub(super) use self::changes::{ChunkChanges, GramChanges, Indexed};
pub(super) use self::map::{grouped, rounds};
pub(super) use self::matches::{Matches, combine};
pub(super) use self::recent::Recent;
pub(super) use self::resident::{Place, Resident};
pub(super) use self::slots::{Slots, place};
use crate::domain::search::Gram;
use crate::domain::tag::Tag;

/// Of a query's grams, the rarest so many choose the spots whose text is compared.
pub(super) const RAREST: usize = 4;

/// Every spot has it.
pub(super) const EVERY_SPOT: Gram = -1;

/// The gram that stands for a tag.
pub(super) const fn tag_gram(tag: Tag) -> Gram {
    -2 - tag as Gram
}

/// A JSON array of numbers: the way to hand a database a list as one value.
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
    use super::*;

    #[test]
    fn numbers_are_a_json_array() {
        assert_eq!(json_numbers([]), "[]");
        assert_eq!(json_numbers([1, -2]), "[1,-2]");
    }

    /// What is in the databases of those who run Tourin. To change it takes a step of the schema.
    #[test]
    fn the_stored_form_is_what_it_has_always_been() {
        assert_eq!((EVERY_SPOT, tag_gram(Tag::Nature), tag_gram(Tag::Performance)), (-1, -2, -10));
        assert_eq!((place(4_095), place(4_096)), ((0, 4_095), (1, 0)));
        let mut slots = Slots::default();
        slots.insert(1);
        slots.insert(300);
        assert_eq!(slots.encode(), [1, 0, 44, 1], "few: a list of 16-bit numbers");
        (0..256).for_each(|slot| slots.insert(slot));
        let bits = slots.encode();
        assert_eq!((bits.len(), &bits[..32], bits[37]), (512, &[255; 32][..], 1 << 4), "a map");
    }
}
