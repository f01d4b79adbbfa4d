//! The words of all names and addresses, and the spots with each word.
//!
//! A million spots have far fewer different words. So a query is compared with the words, and the
//! matches are the spots with the words that contain it. To find those without comparing all of
//! them, words are indexed by their *grams*: their characters, and their pairs of neighbouring
//! characters. A word that contains a text contains all grams of it.
//!
//! A query with spaces runs over several words of a spot: it begins with the end of a word and ends
//! with the start of one, and the words between are whole. The spots that have such words are
//! candidates, and their words are compared in their order.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;

use memchr::memmem::Finder;
use roaring::{MultiOps as _, RoaringBitmap};

use crate::domain::search::SearchText;

/// The number of a word. Numbers of words that no spot has are used again.
type WordId = u32;
/// Stands between the words of a name and those of an address. It is not a word's id.
const BOUNDARY: WordId = WordId::MAX;
/// Between words. Texts have no other white space.
const SPACE: char = ' ';
/// How many grams of a text, the rarest ones, select the words that are compared with it.
const RAREST: usize = 4;
/// How many pending additions are applied together.
const ADDED_TOGETHER: usize = 1 << 20;

/// Most doc ids in a list.
const FEW: usize = 1_000;

/// The words of all spots.
#[derive(Default)]
pub(super) struct Vocabulary {
    ids: HashMap<Arc<str>, WordId>,
    /// By id.
    words: Vec<Word>,
    unused: Vec<WordId>,
    /// The words with a gram.
    grams: HashMap<Gram, RoaringBitmap>,
    /// Words and doc ids that are still to be added. Adding them word by word is several times faster.
    added: Vec<(WordId, u32)>,
    /// The words of the spots' names and addresses in their order, with a [`BOUNDARY`] between. All
    /// spots are in one list, so that many of them can be compared quickly.
    texts: Vec<WordId>,
    /// Where in `texts` a spot's words are, by doc id.
    spans: Vec<Range<u32>>,
    /// How many words in `texts` are of spots that have others by now.
    outdated: usize,
}

struct Word {
    text: Arc<str>,
    docs: Docs,
}

/// The doc ids of the spots with a word: at most [`FEW`] as an ascending list, which is smaller and
/// quicker to read, more as a bitmap.
enum Docs {
    Few(Vec<u32>),
    Many(RoaringBitmap),
}

impl Docs {
    fn extend(&mut self, docs: impl Iterator<Item = u32>) {
        match self {
            Self::Few(few) => {
                few.extend(docs);
                few.sort_unstable();
                few.dedup();
                if few.len() > FEW {
                    *self = Self::Many(few.iter().collect());
                }
            }
            Self::Many(many) => many.extend(docs),
        }
    }

    /// Returns whether any is left.
    fn remove(&mut self, doc: u32) -> bool {
        match self {
            Self::Few(few) => {
                few.retain(|other| *other != doc);
                !few.is_empty()
            }
            Self::Many(many) => {
                many.remove(doc);
                if many.len() <= FEW as u64 {
                    *self = Self::Few(many.iter().collect());
                }
                true
            }
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Few(few) => size_of_val(&**few),
            Self::Many(many) => many.serialized_size(),
        }
    }
}

/// One or two neighbouring characters as a number: their code points of 21 bits each, and a bit above
/// those of a pair.
type Gram = u64;

fn unigram(character: char) -> Gram {
    Gram::from(u32::from(character))
}

fn bigrams(text: &str) -> impl Iterator<Item = Gram> {
    let pairs = text.chars().zip(text.chars().skip(1));
    pairs.map(|(first, second)| 1 << 42 | unigram(first) << 21 | unigram(second))
}

/// The grams that select words with a text: its pairs, or its single character; each once.
fn selective_grams(text: &str) -> Vec<Gram> {
    let mut grams: Vec<Gram> = bigrams(text).collect();
    if grams.is_empty() {
        grams.extend(text.chars().next().map(unigram));
    }
    grams.sort_unstable();
    grams.dedup();
    grams
}

/// All grams of a word, with the spaces around it, so that they also say how it begins and ends.
fn all_grams(word: &str) -> Vec<Gram> {
    let spaced = format!("{SPACE}{word}{SPACE}");
    spaced.chars().map(unigram).chain(bigrams(&spaced)).collect()
}

impl Vocabulary {
    /// The approximate size in bytes.
    pub(super) fn bytes(&self) -> usize {
        let of_word = |(text, id): (&Arc<str>, &WordId)| {
            // With the counters of the shared text, and its entry in the map.
            text.len() + 16 + 24 + size_of::<Word>() + self.words[*id as usize].docs.bytes()
        };
        self.ids.iter().map(of_word).sum::<usize>()
            + self.grams.values().map(|words| words.serialized_size() + 64).sum::<usize>()
            + (self.texts.len() - self.outdated) * size_of::<WordId>()
            + size_of_val(&*self.spans)
    }

    /// Adds a spot with the next doc id by its folded texts, or changes it. [`Vocabulary::find`] takes
    /// it into account after [`Vocabulary::apply`].
    pub(super) fn put(&mut self, doc: u32, name: &str, address: &str) {
        let start = self.texts.len();
        for word in name.split(SPACE) {
            let id = self.add_word(doc, word);
            self.texts.push(id);
        }
        self.texts.push(BOUNDARY);
        for word in address.split(SPACE) {
            let id = self.add_word(doc, word);
            self.texts.push(id);
        }
        let span = start as u32..self.texts.len() as u32;
        match self.spans.get_mut(doc as usize) {
            Some(old) => {
                let old = std::mem::replace(old, span);
                self.remove(doc, old);
            }
            None => self.spans.push(span),
        }
        if self.added.len() >= ADDED_TOGETHER {
            self.apply();
        }
    }

    fn text(&self, span: Range<u32>) -> &[WordId] {
        &self.texts[span.start as usize..span.end as usize]
    }

    fn words_of(&self, doc: u32) -> &[WordId] {
        self.text(self.spans[doc as usize].clone())
    }

    fn add_word(&mut self, doc: u32, text: &str) -> WordId {
        let id = match self.ids.get(text) {
            Some(id) => *id,
            None => self.new_word(text),
        };
        self.added.push((id, doc));
        id
    }

    /// Applies the additions of [`Vocabulary::put`].
    pub(super) fn apply(&mut self) {
        self.added.sort_unstable();
        for of_word in self.added.chunk_by(|one, other| one.0 == other.0) {
            let docs = of_word.iter().map(|(_, doc)| *doc);
            self.words[of_word[0].0 as usize].docs.extend(docs);
        }
        self.added = Vec::new();
    }

    fn new_word(&mut self, text: &str) -> WordId {
        let text: Arc<str> = text.into();
        let word = Word { text: Arc::clone(&text), docs: Docs::Few(Vec::new()) };
        let id = match self.unused.pop() {
            Some(id) => {
                self.words[id as usize] = word;
                id
            }
            None => {
                self.words.push(word);
                self.words.len() as WordId - 1
            }
        };
        for gram in all_grams(&text) {
            self.grams.entry(gram).or_default().insert(id);
        }
        self.ids.insert(text, id);
        id
    }

    /// Removes a changed spot from the words that it has no more.
    fn remove(&mut self, doc: u32, old: Range<u32>) {
        self.apply();
        self.outdated += old.len();
        let now = self.words_of(doc);
        let lost = self.text(old).iter().copied();
        let lost: BTreeSet<WordId> = lost.filter(|id| !now.contains(id)).collect();
        for id in lost {
            if !self.words[id as usize].docs.remove(doc) {
                self.remove_word(id);
            }
        }
        if self.outdated > self.texts.len() / 2 {
            self.compact();
        }
    }

    fn compact(&mut self) {
        let mut texts = Vec::with_capacity(self.texts.len() - self.outdated);
        for span in &mut self.spans {
            let start = texts.len() as u32;
            texts.extend_from_slice(&self.texts[span.start as usize..span.end as usize]);
            *span = start..texts.len() as u32;
        }
        self.texts = texts;
        self.outdated = 0;
    }

    fn remove_word(&mut self, id: WordId) {
        let text = Arc::clone(&self.words[id as usize].text);
        for gram in all_grams(&text) {
            if let Some(words) = self.grams.get_mut(&gram) {
                words.remove(id);
                if words.is_empty() {
                    self.grams.remove(&gram);
                }
            }
        }
        self.ids.remove(&text);
        self.unused.push(id);
    }

    /// The spots with the query in their name or in their address.
    pub(super) fn find(&self, query: &SearchText) -> RoaringBitmap {
        let parts: Vec<&str> = query.as_str().split(SPACE).collect();
        let [first, between @ .., last] = parts.as_slice() else {
            let finder = Finder::new(query.as_str());
            let words =
                self.words_with(query.as_str(), |word| finder.find(word.as_bytes()).is_some());
            return self.docs(&words);
        };
        let between: Option<Vec<WordId>> =
            between.iter().map(|word| self.ids.get(*word).copied()).collect();
        let Some(between) = between else {
            return RoaringBitmap::new();
        };
        let first = self.words_with(&format!("{first}{SPACE}"), |word| word.ends_with(first));
        let last = self.words_with(&format!("{SPACE}{last}"), |word| word.starts_with(last));
        let mut candidates = self.docs(&first) & self.docs(&last);
        for word in &between {
            candidates &= self.docs(&RoaringBitmap::from_iter([*word]));
        }
        let (first, last) = (WordSet::new(&first), WordSet::new(&last));
        let is_match = |window: &[WordId]| match window {
            [one, inner @ .., other] => {
                first.contains(*one) && last.contains(*other) && inner == between
            }
            _ => false,
        };
        let matches = |doc: &u32| self.words_of(*doc).windows(parts.len()).any(is_match);
        candidates.iter().filter(matches).collect()
    }

    /// The words that, with spaces around them, contain a text. `is_match` compares one.
    fn words_with(&self, text: &str, is_match: impl Fn(&str) -> bool) -> RoaringBitmap {
        let grams = selective_grams(text);
        let lists: Option<Vec<_>> = grams.iter().map(|gram| self.grams.get(gram)).collect();
        let Some(mut lists) = lists else {
            return RoaringBitmap::new();
        };
        lists.sort_by_cached_key(|list| list.len());
        let candidates = lists.into_iter().take(RAREST).intersection();
        if text.chars().nth(2).is_none() {
            // The text is a gram.
            return candidates;
        }
        candidates.iter().filter(|id| is_match(&self.words[*id as usize].text)).collect()
    }

    /// The spots with one of these words.
    fn docs(&self, words: &RoaringBitmap) -> RoaringBitmap {
        let mut lists = Vec::new();
        let mut bitmaps = Vec::new();
        for id in words {
            match &self.words[id as usize].docs {
                Docs::Few(docs) => lists.push(docs.as_slice()),
                Docs::Many(docs) => bitmaps.push(docs),
            }
        }
        union_of_lists(&lists) | bitmaps.into_iter().union()
    }
}

/// A set of words that is quick to look into.
struct WordSet(Vec<u64>);

impl WordSet {
    fn new(words: &RoaringBitmap) -> Self {
        let mut bits = vec![0; words.max().map_or(0, |last| last as usize / 64 + 1)];
        for word in words {
            bits[word as usize / 64] |= 1 << (word % 64);
        }
        Self(bits)
    }

    fn contains(&self, word: WordId) -> bool {
        self.0.get(word as usize / 64).is_some_and(|bits| bits >> (word % 64) & 1 == 1)
    }
}

/// The union of ascending lists. From some thousands of items on, a bit for each possible one is
/// quicker than sorting them.
fn union_of_lists(lists: &[&[u32]]) -> RoaringBitmap {
    let items = || lists.iter().copied().flatten().copied();
    if lists.iter().map(|list| list.len()).sum::<usize>() <= FEW {
        let mut sorted: Vec<u32> = items().collect();
        sorted.sort_unstable();
        return sorted.into_iter().collect();
    }
    let greatest = lists.iter().filter_map(|list| list.last()).max();
    let mut bits = vec![0_u8; greatest.map_or(0, |last| *last as usize / 8 + 1)];
    for item in items() {
        bits[item as usize / 8] |= 1 << (item % 8);
    }
    RoaringBitmap::from_lsb0_bytes(0, &bits)
}
