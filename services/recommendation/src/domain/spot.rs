//! A spot, with the data that recommendations need.

use std::fmt;
use std::str::FromStr;

/// Mean radius of the Earth in kilometres (IUGG).
const EARTH_RADIUS_KM: f64 = 6_371.008_8;

/// A spot's id: a whole number from 0 on, a decimal string on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpotId(i64);

impl SpotId {
    /// The id with this number, or `None` if it is negative.
    pub const fn new(number: i64) -> Option<Self> {
        if number < 0 { None } else { Some(Self(number)) }
    }

    /// The number.
    pub const fn number(self) -> i64 {
        self.0
    }
}

impl fmt::Display for SpotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The text is not a spot's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a spot's id is a whole number without sign or leading zeros")]
pub struct NotASpotId;

impl FromStr for SpotId {
    type Err = NotASpotId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let id = text.parse().ok().and_then(Self::new).ok_or(NotASpotId)?;
        // Each id has one spelling: "+7" and "007" are not "7".
        if id.to_string() == text { Ok(id) } else { Err(NotASpotId) }
    }
}

/// A point on the Earth in decimal degrees (WGS 84).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coordinates {
    /// Latitude, -90 to 90.
    pub lat: f64,
    /// Longitude, -180 to 180.
    pub lng: f64,
}

impl Coordinates {
    /// Great-circle distance in kilometres (haversine).
    pub fn distance_km(self, other: Self) -> f64 {
        let (lat, other_lat) = (self.lat.to_radians(), other.lat.to_radians());
        let half_lat = (other_lat - lat) / 2.0;
        let half_lng = (other.lng - self.lng).to_radians() / 2.0;
        let chord = half_lat.sin().powi(2) + lat.cos() * other_lat.cos() * half_lng.sin().powi(2);
        2.0 * EARTH_RADIUS_KM * chord.clamp(0.0, 1.0).sqrt().asin()
    }
}

/// A spot in the replica: the fields that responses show or content similarity needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Spot {
    /// The spot's id.
    pub id: SpotId,
    /// Grows with each change of the spot. The highest version wins.
    pub version: u64,
    /// Name, usually in Korean.
    pub name: String,
    /// Postal address.
    pub address: String,
    /// Its coordinates.
    pub coordinates: Coordinates,
    /// The URL of its picture, if it has one.
    pub image_url: Option<String>,
    /// Its tags, as core orders them.
    pub tags: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_spelling() {
        assert_eq!("7".parse(), Ok(SpotId(7)));
        assert_eq!("0".parse(), Ok(SpotId(0)));
        for text in ["", "+7", "007", "-1", "7.0", "seven", "9223372036854775808"] {
            assert_eq!(text.parse::<SpotId>(), Err(NotASpotId), "{text}");
        }
    }

    #[test]
    fn seoul_to_busan_is_325_km() {
        let seoul = Coordinates { lat: 37.5665, lng: 126.978 };
        let busan = Coordinates { lat: 35.1796, lng: 129.0756 };
        assert!((seoul.distance_km(busan) - 325.0).abs() < 2.0);
        assert!(seoul.distance_km(seoul).abs() < 1e-9);
    }
}
