//! The index of spots by text and by tag, in the order of names, and by place on the map.
//!
//! A spot's doc id is a dense number, assigned in the order of arrival. A posting list is the set of
//! the doc ids of all spots with one gram or one tag, as a compressed bitmap.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use memchr::memmem::Finder;
use roaring::{MultiOps as _, RoaringBitmap};

use crate::domain::geo::{Bounds, cell, spread};
use crate::domain::page::PageRequest;
use crate::domain::search::{Gram, SearchText, SpotSort, fold, push_grams};
use crate::domain::spot::{Coordinates, SpotId, SpotOverview};
use crate::domain::tag::{Tag, TagSet};

/// How many of a query's grams, the rarest ones, select the candidates whose text is compared.
const RAREST: usize = 4;
/// For the map, up to so many matches are filtered one by one; for more, the box is scanned.
const FEW: u64 = 20_000;

/// The key of a tag's posting list: negative, unlike the grams of texts.
const fn tag_gram(tag: Tag) -> Gram {
    -1 - tag as Gram
}

/// The index of all spots.
#[derive(Default)]
pub(in crate::store) struct SpotIndex {
    /// By doc id.
    docs: Vec<Doc>,
    postings: HashMap<Gram, RoaringBitmap>,
    /// Pending additions to posting lists. Adding them later, list by list, is several times faster.
    added: Vec<(Gram, u32)>,
    /// The doc ids by name and spot id, and the rank of each doc id there.
    by_name: Vec<u32>,
    name_ranks: Vec<u32>,
    /// The doc ids by cell and spot id.
    by_cell: Vec<u32>,
    /// The doc ids changed since the orders were built.
    unordered: RoaringBitmap,
}

/// A spot as a list shows it, compactly.
struct Doc {
    id: SpotId,
    at: Coordinates,
    cell: i64,
    tags: TagSet,
    /// Name, address and image URL, concatenated.
    text: Box<str>,
    name_end: u32,
    address_end: u32,
    /// The folded name and address, if folding changes one of them.
    folded: Option<Box<(String, String)>>,
}

impl Doc {
    fn new(spot: &SpotOverview) -> Self {
        let folded = (fold(&spot.name), fold(&spot.address));
        let is_folded = folded.0 == spot.name && folded.1 == spot.address;
        let image_url = spot.image_url.as_deref().unwrap_or_default();
        let name_end = spot.name.len() as u32;
        Self {
            id: spot.id,
            at: spot.at,
            cell: cell(spot.at),
            tags: spot.tags,
            text: [&spot.name, &spot.address, image_url].concat().into(),
            name_end,
            address_end: name_end + spot.address.len() as u32,
            folded: (!is_folded).then(|| Box::new(folded)),
        }
    }

    fn name(&self) -> &str {
        &self.text[..self.name_end as usize]
    }

    fn address(&self) -> &str {
        &self.text[self.name_end as usize..self.address_end as usize]
    }

    fn folded(&self) -> (&str, &str) {
        match self.folded.as_deref() {
            Some((name, address)) => (name, address),
            None => (self.name(), self.address()),
        }
    }

    /// The keys of the posting lists that the spot is in, ascending.
    fn grams(&self) -> Vec<Gram> {
        let (name, address) = self.folded();
        let mut grams: Vec<Gram> = self.tags.iter().map(tag_gram).collect();
        push_grams(name, &mut grams);
        push_grams(address, &mut grams);
        grams.sort_unstable();
        grams.dedup();
        grams
    }

    fn contains(&self, query: &Finder<'_>) -> bool {
        let (name, address) = self.folded();
        query.find(name.as_bytes()).is_some() || query.find(address.as_bytes()).is_some()
    }

    fn overview(&self) -> SpotOverview {
        let image_url = &self.text[self.address_end as usize..];
        SpotOverview {
            id: self.id,
            name: self.name().to_owned(),
            address: self.address().to_owned(),
            at: self.at,
            tags: self.tags,
            image_url: (!image_url.is_empty()).then(|| image_url.to_owned()),
        }
    }

    fn bytes(&self) -> usize {
        let folded = self.folded.as_deref().map_or(0, |(name, address)| name.len() + address.len());
        size_of::<Self>() + self.text.len() + folded
    }
}

/// How many pending additions to posting lists are applied together.
const ADDED_TOGETHER: usize = 1 << 20;

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
            + self.postings.values().map(|list| list.serialized_size() + 64).sum::<usize>()
            + (self.by_name.len() + self.name_ranks.len() + self.by_cell.len()) * size_of::<u32>()
    }

    /// Adds a spot with the next doc id, or changes a spot. Call [`SpotIndex::order`] after the last one.
    ///
    /// # Errors
    /// [`DocIdGap`] when the doc id is greater than the next one.
    pub(in crate::store) fn put(&mut self, doc: u32, spot: &SpotOverview) -> Result<(), DocIdGap> {
        let new = Doc::new(spot);
        let grams = new.grams();
        let mut before = Vec::new();
        if (doc as usize) < self.docs.len() {
            self.add_to_postings();
            let old = std::mem::replace(&mut self.docs[doc as usize], new);
            before = old.grams();
        } else if doc as usize == self.docs.len() {
            self.docs.push(new);
        } else {
            return Err(DocIdGap(doc));
        }
        for gram in before.iter().filter(|gram| grams.binary_search(gram).is_err()) {
            if let Some(list) = self.postings.get_mut(gram) {
                list.remove(doc);
                if list.is_empty() {
                    self.postings.remove(gram);
                }
            }
        }
        let gained = grams.into_iter().filter(|gram| before.binary_search(gram).is_err());
        self.added.extend(gained.map(|gram| (gram, doc)));
        if self.added.len() >= ADDED_TOGETHER {
            self.add_to_postings();
        }
        self.unordered.insert(doc);
        Ok(())
    }

    fn add_to_postings(&mut self) {
        self.added.sort_unstable();
        for of_gram in self.added.chunk_by(|one, other| one.0 == other.0) {
            let list = self.postings.entry(of_gram[0].0).or_default();
            list.extend(of_gram.iter().map(|(_, doc)| *doc));
        }
        self.added.clear();
    }

    /// Applies the additions and changes to the posting lists and to the orders by name and by cell.
    pub(in crate::store) fn order(&mut self) {
        self.add_to_postings();
        self.added.shrink_to_fit();
        let changed = std::mem::take(&mut self.unordered);
        let docs = &self.docs;
        let doc = |id: u32| &docs[id as usize];
        // UTF-8 bytes sort in the order of code points.
        merge(&mut self.by_name, &changed, |id| (doc(id).name(), doc(id).id));
        merge(&mut self.by_cell, &changed, |id| (doc(id).cell, doc(id).id));
        self.name_ranks.resize(docs.len(), 0);
        for (rank, doc) in (0..).zip(&self.by_name) {
            self.name_ranks[*doc as usize] = rank;
        }
    }

    /// The spots with one of these tags.
    pub(in crate::store) fn with_tags(&self, tags: TagSet) -> RoaringBitmap {
        tags.iter().filter_map(|tag| self.postings.get(&tag_gram(tag))).union()
    }

    /// The spots with this text.
    pub(in crate::store) fn with_text(&self, query: &SearchText) -> RoaringBitmap {
        let lists: Option<Vec<_>> =
            query.grams().iter().map(|gram| self.postings.get(gram)).collect();
        let Some(mut lists) = lists else {
            return RoaringBitmap::new();
        };
        lists.sort_by_cached_key(|list| list.len());
        let found = lists.into_iter().take(RAREST).intersection();
        if query.is_one_gram() {
            return found;
        }
        let finder = Finder::new(query.as_str().as_bytes());
        found.iter().filter(|doc| self.docs[*doc as usize].contains(&finder)).collect()
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
            Some(matches) if self.is_sorting_cheaper(total, offset + length) => {
                let ranks = self.first_ranks(matches, backwards, offset + length);
                ranks[offset..].iter().map(|rank| doc_at(*rank as usize)).collect()
            }
            Some(matches) => {
                let names = (0..=last).map(doc_at).filter(|doc| matches.contains(*doc));
                names.skip(offset).take(length).collect()
            }
        };
        if from_far_end {
            docs.reverse();
        }
        self.overviews(&docs)
    }

    /// Compares the costs: sorting visits every match; walking visits every name up to the page's end,
    /// estimated for evenly spread matches.
    fn is_sorting_cheaper(&self, total: u64, end: usize) -> bool {
        total <= (end as u64).saturating_mul(self.spots()) / total.max(1)
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
        let doc = |id: u32| &self.docs[id as usize];
        let few: Vec<u32>;
        let (by_cell, matches) = match matches {
            Some(matches) if matches.len() <= FEW => {
                let mut inside: Vec<u32> =
                    matches.iter().filter(|id| bounds.contains(doc(*id).at)).collect();
                inside.sort_unstable_by_key(|id| (doc(*id).cell, doc(*id).id));
                few = inside;
                (few.as_slice(), None)
            }
            matches => (self.by_cell.as_slice(), matches),
        };
        let of_cell = |codes: RangeInclusive<i64>| {
            let first = by_cell.partition_point(|id| doc(*id).cell < *codes.start());
            let inside = by_cell[first..].iter().copied();
            inside
                .take_while(move |id| codes.contains(&doc(*id).cell))
                .filter(move |id| bounds.contains(doc(*id).at))
                .filter(move |id| matches.is_none_or(|matches| matches.contains(*id)))
        };
        self.overviews(&spread(bounds.grid(max).into_iter().map(of_cell), max))
    }

    fn overviews(&self, docs: &[u32]) -> Vec<SpotOverview> {
        docs.iter().map(|doc| self.docs[*doc as usize].overview()).collect()
    }
}

/// Moves the changed doc ids to their new positions in an ordered list.
fn merge<K: Ord>(list: &mut Vec<u32>, changed: &RoaringBitmap, key: impl Fn(u32) -> K) {
    let mut moved: Vec<u32> = changed.iter().collect();
    moved.sort_by_cached_key(|doc| key(*doc));
    list.retain(|doc| !changed.contains(*doc));
    let mut merged = Vec::with_capacity(list.len() + moved.len());
    let mut rest = list.as_slice();
    for doc in moved {
        let (before, after) = rest.split_at(rest.partition_point(|other| key(*other) < key(doc)));
        merged.extend_from_slice(before);
        merged.push(doc);
        rest = after;
    }
    merged.extend_from_slice(rest);
    *list = merged;
}
