//! The index of spots by text and by tag, in the order of names, and by place on the map.
//!
//! A spot's doc id is a dense number, assigned in the order of arrival. A posting list is the set of
//! the doc ids of all spots with one word or one tag.

use std::ops::RangeInclusive;

use roaring::{MultiOps as _, RoaringBitmap};

use super::vocabulary::Vocabulary;
use crate::domain::geo::{Bounds, cell, spread};
use crate::domain::page::PageRequest;
use crate::domain::search::{SearchText, SpotSort, fold};
use crate::domain::spot::{Coordinates, SpotId, SpotOverview};
use crate::domain::tag::{Tag, TagSet};

/// The index of all spots.
#[derive(Default)]
pub(in crate::store) struct SpotIndex {
    /// By doc id.
    docs: Vec<Doc>,
    /// The coordinates by doc id; apart, since the map compares many of them.
    at: Vec<Coordinates>,
    vocabulary: Vocabulary,
    /// The doc ids by tag.
    tags: [RoaringBitmap; Tag::ALL.len()],
    /// The doc ids by name and spot id, and the rank of each doc id there.
    by_name: Vec<u32>,
    name_ranks: Vec<u32>,
    /// Cells and doc ids, by cell and spot id.
    by_cell: Vec<(i64, u32)>,
    /// The doc ids changed since the orders were built.
    unordered: RoaringBitmap,
}

/// A spot as a list shows it, compactly.
struct Doc {
    id: SpotId,
    tags: TagSet,
    /// Name, address and image URL, concatenated.
    text: Box<str>,
    name_end: u32,
    address_end: u32,
}

impl Doc {
    fn new(spot: &SpotOverview) -> Self {
        let image_url = spot.image_url.as_deref().unwrap_or_default();
        let name_end = spot.name.len() as u32;
        Self {
            id: spot.id,
            tags: spot.tags,
            text: [&spot.name, &spot.address, image_url].concat().into(),
            name_end,
            address_end: name_end + spot.address.len() as u32,
        }
    }

    fn name(&self) -> &str {
        &self.text[..self.name_end as usize]
    }

    fn address(&self) -> &str {
        &self.text[self.name_end as usize..self.address_end as usize]
    }

    fn overview(&self, at: Coordinates) -> SpotOverview {
        let image_url = &self.text[self.address_end as usize..];
        SpotOverview {
            id: self.id,
            name: self.name().to_owned(),
            address: self.address().to_owned(),
            at,
            tags: self.tags,
            image_url: (!image_url.is_empty()).then(|| image_url.to_owned()),
        }
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.text.len()
    }
}

/// A doc id was skipped; doc ids must be dense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the spots' doc ids have a gap before {0}")]
pub(in crate::store) struct DocIdGap(u32);

impl SpotIndex {
    /// The number of spots.
    pub(in crate::store) fn spots(&self) -> u64 {
        self.docs.len() as u64
    }

    /// The approximate size in bytes.
    pub(in crate::store) fn bytes(&self) -> usize {
        self.docs.iter().map(Doc::bytes).sum::<usize>()
            + self.vocabulary.bytes()
            + self.tags.iter().map(RoaringBitmap::serialized_size).sum::<usize>()
            + size_of_val(&*self.at)
            + size_of_val(&*self.by_name)
            + size_of_val(&*self.name_ranks)
            + size_of_val(&*self.by_cell)
    }

    /// Adds a spot with the next doc id, or changes a spot. Call [`SpotIndex::order`] after the last one.
    ///
    /// # Errors
    /// [`DocIdGap`] when the doc id is greater than the next one.
    pub(in crate::store) fn put(&mut self, doc: u32, spot: &SpotOverview) -> Result<(), DocIdGap> {
        let at = doc as usize;
        if at > self.docs.len() {
            return Err(DocIdGap(doc));
        }
        self.vocabulary.put(doc, &fold(&spot.name), &fold(&spot.address));
        let new = Doc::new(spot);
        if at == self.docs.len() {
            self.docs.push(new);
            self.at.push(spot.at);
        } else {
            let old = std::mem::replace(&mut self.docs[at], new);
            for tag in old.tags.iter() {
                self.tags[tag as usize].remove(doc);
            }
            self.at[at] = spot.at;
        }
        for tag in spot.tags.iter() {
            self.tags[tag as usize].insert(doc);
        }
        self.unordered.insert(doc);
        Ok(())
    }

    /// Applies the changes to the orders by name and by cell.
    pub(in crate::store) fn order(&mut self) {
        self.vocabulary.apply();
        let changed = std::mem::take(&mut self.unordered);
        let docs = &self.docs;
        let by_name = |doc: u32| {
            let doc = &docs[doc as usize];
            // UTF-8 bytes sort in the order of code points.
            (doc.name(), doc.id)
        };
        let mut moved: Vec<u32> = changed.iter().collect();
        // Most names differ in their first bytes, which are compared without a look at the name.
        moved.sort_by_cached_key(|doc| (first_bytes(by_name(*doc).0), by_name(*doc)));
        merge(&mut self.by_name, moved, |doc| changed.contains(doc), by_name);
        let by_cell = |(cell, doc): (i64, u32)| (cell, docs[doc as usize].id);
        let mut moved: Vec<(i64, u32)> =
            changed.iter().map(|doc| (cell(self.at[doc as usize]), doc)).collect();
        moved.sort_by_cached_key(|entry| by_cell(*entry));
        merge(&mut self.by_cell, moved, |(_, doc)| changed.contains(doc), by_cell);
        self.name_ranks.resize(docs.len(), 0);
        for (rank, doc) in (0..).zip(&self.by_name) {
            self.name_ranks[*doc as usize] = rank;
        }
    }

    /// The spots with one of these tags.
    pub(in crate::store) fn with_tags(&self, tags: TagSet) -> RoaringBitmap {
        tags.iter().map(|tag| &self.tags[tag as usize]).union()
    }

    /// The spots with this text.
    pub(in crate::store) fn with_text(&self, query: &SearchText) -> RoaringBitmap {
        self.vocabulary.find(query)
    }

    /// The spots of a page in order, of `matches` or of all spots.
    pub(in crate::store) fn page(
        &self,
        matches: Option<&RoaringBitmap>,
        sort: SpotSort,
        page: PageRequest,
    ) -> Vec<SpotOverview> {
        let total = matches.map_or(self.spots(), RoaringBitmap::len);
        let Some(left) = total.checked_sub(page.offset()).filter(|left| *left > 0) else {
            return Vec::new();
        };
        let length = left.min(u64::from(page.size()));
        // The page, counted from the nearer end of the ascending list.
        let from_far_end = page.offset() > left - length;
        let offset = if from_far_end { left - length } else { page.offset() };
        let backwards = (sort == SpotSort::NameDescending) != from_far_end;
        let (offset, length) = (offset as usize, length as usize);
        let last = self.by_name.len() - 1;
        let doc_at = |rank: usize| self.by_name[if backwards { last - rank } else { rank }];
        let mut docs: Vec<u32> = match matches {
            None => (offset..offset + length).map(doc_at).collect(),
            Some(matches) => {
                // Many matches come soon in a walk over the names. Sorting visits each match once, so
                // a walk that takes a part of that is no great loss.
                let names = (0..=last).take(total as usize / 4).map(doc_at);
                let found = names.filter(|doc| matches.contains(*doc));
                let walked: Vec<u32> = found.skip(offset).take(length).collect();
                if walked.len() == length {
                    walked
                } else {
                    let ranks = self.first_ranks(matches, backwards, offset + length);
                    ranks[offset..].iter().map(|rank| doc_at(*rank as usize)).collect()
                }
            }
        };
        if from_far_end {
            docs.reverse();
        }
        self.overviews(&docs)
    }

    /// The ranks of the first `count` matches, counted from the start or the end of the list.
    fn first_ranks(&self, matches: &RoaringBitmap, backwards: bool, count: usize) -> Vec<u32> {
        let last = self.name_ranks.len() as u32 - 1;
        let rank = |doc: u32| self.name_ranks[doc as usize];
        let mut ranks: Vec<u32> = matches
            .iter()
            .map(|doc| if backwards { last - rank(doc) } else { rank(doc) })
            .collect();
        if count < ranks.len() {
            ranks.select_nth_unstable(count);
            ranks.truncate(count);
        }
        ranks.sort_unstable();
        ranks
    }

    /// At most `max` spots in the box, of `matches` or of all spots, unordered. Of more, those that
    /// [`spread`] selects.
    pub(in crate::store) fn in_box(
        &self,
        matches: Option<&RoaringBitmap>,
        bounds: &Bounds,
        max: usize,
    ) -> Vec<SpotOverview> {
        // More matches than one in four are met soon by a walk through the box, wherever it is.
        let is_inside = |doc: u32| bounds.contains(self.at[doc as usize]);
        let few: Vec<(i64, u32)>;
        let (by_cell, matches) = match matches {
            Some(matches) if matches.len() <= self.spots() / 4 => {
                let inside = matches.iter().filter(|doc| is_inside(*doc));
                let mut inside: Vec<_> =
                    inside.map(|doc| (cell(self.at[doc as usize]), doc)).collect();
                let id = |doc: u32| self.docs[doc as usize].id;
                inside.sort_unstable_by(|one, other| {
                    one.0.cmp(&other.0).then_with(|| id(one.1).cmp(&id(other.1)))
                });
                few = inside;
                (few.as_slice(), None)
            }
            matches => (self.by_cell.as_slice(), matches),
        };
        let of_cell = |codes: RangeInclusive<i64>| {
            let first = by_cell.partition_point(|(cell, _)| cell < codes.start());
            by_cell[first..]
                .iter()
                .take_while(move |(cell, _)| cell <= codes.end())
                .map(|(_, doc)| *doc)
                .filter(move |doc| matches.is_none_or(|matches| matches.contains(*doc)))
                .filter(move |doc| is_inside(*doc))
        };
        self.overviews(&spread(bounds.grid(max).into_iter().map(of_cell), max))
    }

    fn overviews(&self, docs: &[u32]) -> Vec<SpotOverview> {
        let overview = |doc: usize| self.docs[doc].overview(self.at[doc]);
        docs.iter().map(|doc| overview(*doc as usize)).collect()
    }
}

/// The first 16 bytes of a text, as a number in their order.
fn first_bytes(text: &str) -> u128 {
    let mut first = [0; 16];
    let length = text.len().min(first.len());
    first[..length].copy_from_slice(&text.as_bytes()[..length]);
    u128::from_be_bytes(first)
}

/// Replaces the changed entries of an ordered list by `moved`, which is in the same order.
fn merge<T: Copy, K: Ord>(
    list: &mut Vec<T>,
    moved: Vec<T>,
    is_changed: impl Fn(T) -> bool,
    key: impl Fn(T) -> K,
) {
    list.retain(|entry| !is_changed(*entry));
    let mut merged = Vec::with_capacity(list.len() + moved.len());
    let mut rest = list.as_slice();
    for entry in moved {
        let (before, after) = rest.split_at(rest.partition_point(|other| key(*other) < key(entry)));
        merged.extend_from_slice(before);
        merged.push(entry);
        rest = after;
    }
    merged.extend_from_slice(rest);
    *list = merged;
}
