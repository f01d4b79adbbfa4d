//! The nine tags of a tour spot.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The category of a tour spot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Tag {
    /// Nature.
    #[serde(rename = "자연")]
    Nature,
    /// History.
    #[serde(rename = "역사")]
    History,
    /// Rest and recreation.
    #[serde(rename = "휴양")]
    Rest,
    /// Hands-on experience.
    #[serde(rename = "체험")]
    Experience,
    /// Industry.
    #[serde(rename = "산업")]
    Industry,
    /// Architecture and sculpture.
    #[serde(rename = "건축/조형")]
    Architecture,
    /// Culture.
    #[serde(rename = "문화")]
    Culture,
    /// Festivals.
    #[serde(rename = "축제")]
    Festival,
    /// Performances and events.
    #[serde(rename = "공연/행사")]
    Performance,
}

impl Tag {
    /// Every tag, in the order in which a spot's tags are shown.
    pub const ALL: [Self; 9] = [
        Self::Nature,
        Self::History,
        Self::Rest,
        Self::Experience,
        Self::Industry,
        Self::Architecture,
        Self::Culture,
        Self::Festival,
        Self::Performance,
    ];

    /// The tag's name, as clients write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nature => "자연",
            Self::History => "역사",
            Self::Rest => "휴양",
            Self::Experience => "체험",
            Self::Industry => "산업",
            Self::Architecture => "건축/조형",
            Self::Culture => "문화",
            Self::Festival => "축제",
            Self::Performance => "공연/행사",
        }
    }

    /// The tag's name in the system that Tourin replaces. Accepted from its clients, never written.
    pub const fn old_name(self) -> &'static str {
        match self {
            Self::Nature => "NATURE",
            Self::History => "HISTORY",
            Self::Rest => "REST",
            Self::Experience => "EXPERIENCE",
            Self::Industry => "INDUSTRY",
            Self::Architecture => "ARCHITECTURE",
            Self::Culture => "CULTURE",
            Self::Festival => "FESTIVAL",
            Self::Performance => "CONCERT",
        }
    }

    const fn bit(self) -> u16 {
        1 << self as u16
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is not a valid tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown tag `{0}`: it must be one of 자연 (NATURE), 역사 (HISTORY), 휴양 (REST), \
     체험 (EXPERIENCE), 산업 (INDUSTRY), 건축/조형 (ARCHITECTURE), 문화 (CULTURE), 축제 (FESTIVAL), \
     공연/행사 (CONCERT)"
)]
pub struct UnknownTag(String);

impl FromStr for Tag {
    type Err = UnknownTag;

    /// Reads either name, the old one in any case.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|tag| tag.name() == name || tag.old_name().eq_ignore_ascii_case(name))
            // Bounded: the text comes from the client and goes into the message.
            .ok_or_else(|| UnknownTag(name.chars().take(40).collect()))
    }
}

/// A set of tags: a bit per tag, in the order of [`Tag::ALL`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct TagSet(u16);

impl TagSet {
    /// The set of a stored bit pattern; unknown bits are dropped.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits & ((1 << Tag::ALL.len()) - 1))
    }

    /// The set as a bit pattern, for storage.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Whether the set has no tag.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the set has `tag`.
    pub const fn contains(self, tag: Tag) -> bool {
        self.0 & tag.bit() != 0
    }

    /// Whether the two sets share a tag.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The tags, in the order of [`Tag::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Tag> {
        Tag::ALL.into_iter().filter(move |tag| self.contains(*tag))
    }

    /// The set of the named tags.
    ///
    /// # Errors
    /// [`UnknownTag`] for the first unknown name.
    pub fn parse<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Result<Self, UnknownTag> {
        names.into_iter().map(|name| name.as_ref().parse::<Tag>()).collect()
    }
}

impl FromIterator<Tag> for TagSet {
    fn from_iter<I: IntoIterator<Item = Tag>>(tags: I) -> Self {
        Self(tags.into_iter().fold(0, |bits, tag| bits | tag.bit()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tag_reads_back_from_its_names() {
        let refusal = "바다".parse::<Tag>().unwrap_err().to_string();
        for tag in Tag::ALL {
            for name in [tag.name(), tag.old_name(), &tag.old_name().to_lowercase()] {
                assert_eq!(name.parse(), Ok(tag));
            }
            assert_eq!(serde_json::to_value(tag).unwrap(), tag.name());
            let both = format!("{} ({})", tag.name(), tag.old_name());
            assert!(refusal.contains(&both), "{refusal} does not name {both}");
        }
        assert!("".parse::<Tag>().is_err());
    }

    #[test]
    fn a_set_keeps_its_tags_and_their_order() {
        let set = TagSet::parse(["CULTURE", "자연", "문화"]).unwrap();
        assert_eq!(set.iter().collect::<Vec<_>>(), [Tag::Nature, Tag::Culture]);
        assert_eq!(TagSet::from_bits(set.bits()), set);
        assert!(set.intersects(TagSet::from_iter([Tag::Culture])));
        assert!(!set.intersects(TagSet::from_iter([Tag::Rest])));
        assert!(TagSet::from_bits(1 << 9).is_empty());
    }
}
