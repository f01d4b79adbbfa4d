//! Tour spots and their validation.

use std::fmt;
use std::str::FromStr;

use tourin_chassis::text;

use super::tag::TagSet;

/// Longest name, in characters.
pub const MAX_NAME_CHARS: usize = 200;
/// Longest address, in characters.
pub const MAX_ADDRESS_CHARS: usize = 300;
/// Longest description, in characters.
pub const MAX_DESCRIPTION_CHARS: usize = 5_000;
/// Longest telephone number, in characters: some spots have several numbers.
pub const MAX_PHONE_CHARS: usize = 100;
/// Longest image address, in characters.
pub const MAX_IMAGE_URL_CHARS: usize = 2_048;

/// The id of a tour spot: an integer, a string in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpotId(i64);

impl SpotId {
    /// The id with this number.
    pub const fn new(number: i64) -> Self {
        Self(number)
    }

    /// The id's number.
    pub const fn number(self) -> i64 {
        self.0
    }
}

impl fmt::Display for SpotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The text is not a valid id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id is a whole number from 0 to {} without sign or leading zeros", i64::MAX)]
pub struct InvalidId;

impl FromStr for SpotId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_id(text).map(Self)
    }
}

/// Accepts one spelling per number, so that no spot has two paths.
pub(super) fn parse_id(text: &str) -> Result<i64, InvalidId> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || (text.len() > 1 && text.starts_with('0')) {
        return Err(InvalidId);
    }
    text.parse().map_err(|_| InvalidId)
}

/// A point on the earth in decimal degrees (WGS 84).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coordinates {
    lat: f64,
    lng: f64,
}

impl Coordinates {
    /// The point at a latitude of -90..=90 and a longitude of -180..=180 degrees.
    ///
    /// # Errors
    /// [`InvalidSpot`] when a number is out of range or not finite.
    pub fn new(lat: f64, lng: f64) -> Result<Self, InvalidSpot> {
        if !(-90.0..=90.0).contains(&lat) {
            return Err(InvalidSpot::Latitude);
        }
        if !(-180.0..=180.0).contains(&lng) {
            return Err(InvalidSpot::Longitude);
        }
        // A negative zero prints as "-0" and compares unequal in its bits.
        Ok(Self { lat: lat + 0.0, lng: lng + 0.0 })
    }

    /// The latitude in degrees.
    pub const fn lat(self) -> f64 {
        self.lat
    }

    /// The longitude in degrees.
    pub const fn lng(self) -> f64 {
        self.lng
    }
}

/// Why a spot is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each message says it")]
pub enum InvalidSpot {
    #[error("{0}")]
    Id(#[from] InvalidId),
    #[error("lat must be a number from -90 to 90")]
    Latitude,
    #[error("lng must be a number from -180 to 180")]
    Longitude,
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{0} is longer than {1} characters")]
    TooLong(&'static str, usize),
    #[error("{0} has a control character")]
    ControlCharacter(&'static str),
    #[error("a spot needs at least one tag")]
    NoTag,
}

/// The content of a spot. Valid by construction: texts are trimmed, in Unicode NFC and bounded, and
/// there is at least one tag. The description has the form of [`text::prose`], the other texts that
/// of [`text::line`].
#[derive(Debug, Clone, PartialEq)]
pub struct SpotContent {
    name: String,
    address: String,
    at: Coordinates,
    tags: TagSet,
    image_url: Option<String>,
    description: Option<String>,
    phone_number: Option<String>,
}

/// The unchecked parts of a [`SpotContent`]. An empty optional text means absent.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs, reason = "the fields of a spot")]
pub struct RawSpot {
    pub name: String,
    pub address: String,
    pub lat: f64,
    pub lng: f64,
    pub tags: TagSet,
    pub image_url: Option<String>,
    pub description: Option<String>,
    pub phone_number: Option<String>,
}

impl SpotContent {
    /// Checks and normalises the parts of a spot.
    ///
    /// # Errors
    /// [`InvalidSpot`], naming the first part that is wrong.
    pub fn new(raw: RawSpot) -> Result<Self, InvalidSpot> {
        if raw.tags.is_empty() {
            return Err(InvalidSpot::NoTag);
        }
        Ok(Self {
            name: line("name", raw.name, MAX_NAME_CHARS)?.ok_or(InvalidSpot::Missing("name"))?,
            address: line("address", raw.address, MAX_ADDRESS_CHARS)?
                .ok_or(InvalidSpot::Missing("address"))?,
            at: Coordinates::new(raw.lat, raw.lng)?,
            tags: raw.tags,
            image_url: line("imageUrl", raw.image_url.unwrap_or_default(), MAX_IMAGE_URL_CHARS)?,
            description: bounded(
                "description",
                &text::prose(&raw.description.unwrap_or_default()),
                MAX_DESCRIPTION_CHARS,
            )?,
            phone_number: line(
                "phoneNumber",
                raw.phone_number.unwrap_or_default(),
                MAX_PHONE_CHARS,
            )?,
        })
    }

    /// A spot from the store, unchanged. It may have been checked by older rules, and the index uses
    /// the stored texts.
    pub(crate) fn trusted(raw: RawSpot) -> Result<Self, InvalidSpot> {
        Ok(Self {
            name: raw.name,
            address: raw.address,
            at: Coordinates::new(raw.lat, raw.lng)?,
            tags: raw.tags,
            image_url: raw.image_url,
            description: raw.description,
            phone_number: raw.phone_number,
        })
    }

    /// The spot's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The coordinates.
    pub const fn at(&self) -> Coordinates {
        self.at
    }

    /// The tags.
    pub const fn tags(&self) -> TagSet {
        self.tags
    }

    /// The URL of an image.
    pub fn image_url(&self) -> Option<&str> {
        self.image_url.as_deref()
    }

    /// The description.
    pub fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }

    /// The telephone number.
    pub fn phone_number(&self) -> Option<&str> {
        self.phone_number.as_deref()
    }
}

/// A trimmed text of one line; `None` if it is empty.
fn line(field: &'static str, value: String, max: usize) -> Result<Option<String>, InvalidSpot> {
    let value = bounded(field, &text::line(&value), max)?;
    match &value {
        Some(line) if line.chars().any(char::is_control) => {
            Err(InvalidSpot::ControlCharacter(field))
        }
        _ => Ok(value),
    }
}

/// A trimmed text; `None` if it is empty.
fn bounded(field: &'static str, value: &str, max: usize) -> Result<Option<String>, InvalidSpot> {
    if text::is_blank(value) {
        return Ok(None);
    }
    let value = value.trim();
    if value.chars().nth(max).is_some() {
        return Err(InvalidSpot::TooLong(field, max));
    }
    Ok(Some(value.to_owned()))
}

/// A spot to add or change.
#[derive(Debug, Clone, PartialEq)]
pub struct SpotDraft {
    /// Its id.
    pub id: SpotId,
    /// The new content.
    pub content: SpotContent,
}

/// A stored spot.
#[derive(Debug, Clone, PartialEq)]
pub struct Spot {
    /// Its id.
    pub id: SpotId,
    /// From 1; increased by one with every change of the content.
    pub version: u64,
    /// The content.
    pub content: SpotContent,
}

/// What a list or the map shows of a spot.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "the fields of a spot")]
pub struct SpotOverview {
    pub id: SpotId,
    pub name: String,
    pub address: String,
    pub at: Coordinates,
    pub tags: TagSet,
    pub image_url: Option<String>,
}

impl Spot {
    /// What a list shows of it.
    pub fn overview(&self) -> SpotOverview {
        SpotOverview {
            id: self.id,
            name: self.content.name.clone(),
            address: self.content.address.clone(),
            at: self.content.at,
            tags: self.content.tags,
            image_url: self.content.image_url.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use unicode_normalization::UnicodeNormalization as _;

    use super::super::tag::Tag;
    use super::*;

    fn raw() -> RawSpot {
        RawSpot {
            name: "경복궁".into(),
            address: "서울특별시 종로구 사직로 161".into(),
            lat: 37.579_6,
            lng: 126.977,
            tags: TagSet::from_iter([Tag::History]),
            ..RawSpot::default()
        }
    }

    #[test]
    fn an_id_has_one_spelling() {
        assert_eq!("0".parse(), Ok(SpotId::new(0)));
        assert_eq!("9223372036854775807".parse(), Ok(SpotId::new(i64::MAX)));
        for wrong in ["", "01", "+1", "-1", " 1", "1.0", "१", "abc", "9223372036854775808"] {
            assert_eq!(wrong.parse::<SpotId>(), Err(InvalidId), "{wrong}");
        }
    }

    #[test]
    fn texts_are_trimmed_composed_and_absent_if_blank() {
        let content = SpotContent::new(RawSpot {
            name: " 경\u{200B}복궁 ".nfd().collect(),
            address: "서울\u{3000}종로구\u{202E}".into(),
            description: Some("\u{3164} ".into()),
            ..raw()
        })
        .unwrap();
        assert_eq!((content.name(), content.address()), ("경복궁", "서울 종로구"));
        assert_eq!(content.description(), None);
        let described = Some("한 줄\r\n두\t줄\u{7}".into());
        let content = SpotContent::new(RawSpot { description: described, ..raw() }).unwrap();
        assert_eq!(content.description(), Some("한 줄\n두 줄"));
    }

    #[test]
    fn a_wrong_part_is_named() {
        let wrong = |change: fn(&mut RawSpot)| {
            let mut raw = raw();
            change(&mut raw);
            SpotContent::new(raw).unwrap_err()
        };
        assert_eq!(wrong(|spot| spot.name = " ".into()), InvalidSpot::Missing("name"));
        assert_eq!(wrong(|spot| spot.name = "\u{3164}".into()), InvalidSpot::Missing("name"));
        assert_eq!(wrong(|spot| spot.lat = 90.1), InvalidSpot::Latitude);
        assert_eq!(wrong(|spot| spot.lat = f64::NAN), InvalidSpot::Latitude);
        assert_eq!(wrong(|spot| spot.lng = f64::INFINITY), InvalidSpot::Longitude);
        assert_eq!(wrong(|spot| spot.tags = TagSet::default()), InvalidSpot::NoTag);
        assert_eq!(
            wrong(|spot| spot.name = "a\u{0}b".into()),
            InvalidSpot::ControlCharacter("name")
        );
        assert_eq!(
            wrong(|spot| spot.address = "가".repeat(301)),
            InvalidSpot::TooLong("address", 300)
        );
    }
}
