//! Content similarity by shared tags and distance. It needs no co-occurrence, so that a member's
//! first bookmark already counts.

use super::spot::Spot;

/// The weights of tags and distance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ContentRules {
    /// Distance in kilometres at which closeness has halved (with `distance_exponent` 1).
    pub distance_scale_km: f64,
    /// How steeply closeness falls: `(1 + km / scale)^-exponent`.
    pub distance_exponent: f64,
    /// The tag similarity of two spots without a common tag, from 0 to 1.
    pub untagged: f64,
}

impl Default for ContentRules {
    fn default() -> Self {
        Self { distance_scale_km: 20.0, distance_exponent: 1.0, untagged: 0.1 }
    }
}

impl ContentRules {
    /// The similarity of two spots, above 0 and up to 1.
    pub fn affinity(&self, a: &Spot, b: &Spot) -> f64 {
        let closeness = (1.0 + a.coordinates.distance_km(b.coordinates) / self.distance_scale_km)
            .powf(-self.distance_exponent);
        (self.untagged + (1.0 - self.untagged) * common_tags(a, b)) * closeness
    }
}

/// Jaccard similarity of the tags.
fn common_tags(a: &Spot, b: &Spot) -> f64 {
    let common = a.tags.iter().filter(|tag| b.tags.contains(tag)).count();
    let all = a.tags.len() + b.tags.len() - common;
    if all == 0 { 0.0 } else { common as f64 / all as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::spot::{Coordinates, SpotId};

    fn spot(id: i64, lat: f64, tags: &[&str]) -> Spot {
        Spot {
            id: SpotId::new(id).expect("not negative"),
            version: 1,
            name: format!("spot {id}"),
            address: String::new(),
            coordinates: Coordinates { lat, lng: 127.0 },
            image_url: None,
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        }
    }

    #[test]
    fn common_tags_beat_closeness_and_closeness_decides_between_equals() {
        let rules = ContentRules::default();
        let temple = spot(1, 37.0, &["역사", "문화"]);
        let far_temple = spot(2, 37.3, &["역사", "문화"]);
        let near_temple = spot(3, 37.1, &["역사", "문화"]);
        let near_beach = spot(4, 37.1, &["자연"]);
        assert!(rules.affinity(&temple, &far_temple) > rules.affinity(&temple, &near_beach));
        assert!(rules.affinity(&temple, &near_temple) > rules.affinity(&temple, &far_temple));
        assert!(rules.affinity(&temple, &near_beach) > 0.0);
        assert!((rules.affinity(&temple, &temple) - 1.0).abs() < 1e-9);
    }
}
