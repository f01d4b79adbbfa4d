//! The map: boxes of coordinates, the cells that index them, and the selection among too many spots.
//!
//! A spot's *cell* is its Z-order (Morton) code: the interleaved bits of its longitude and latitude.
//! All points of one quarter of the earth, of one quarter of that, and so on, have codes in one
//! contiguous range. So a sorted list or a B-tree of codes finds the points of a box in a few ranges.

use std::ops::RangeInclusive;

use super::spot::Coordinates;

/// Bits of each coordinate in a cell's code; one step is under two centimetres.
const BITS: u32 = 31;

/// The Z-order code of a point; not negative.
pub fn cell(at: Coordinates) -> i64 {
    morton(column(at.lng()), row(at.lat()))
}

fn column(lng: f64) -> u32 {
    step((lng + 180.0) / 360.0)
}

fn row(lat: f64) -> u32 {
    step((lat + 90.0) / 180.0)
}

/// Monotonic, so that a box's corners bound the steps of every point in it.
fn step(fraction: f64) -> u32 {
    let steps = f64::from(1_u32 << BITS);
    (fraction * steps).clamp(0.0, steps - 1.0) as u32
}

fn morton(column: u32, row: u32) -> i64 {
    (spaced(column) | (spaced(row) << 1)).cast_signed()
}

/// The bits of a number with a zero between each two.
fn spaced(number: u32) -> u64 {
    let mut bits = u64::from(number);
    for (shift, mask) in [
        (16, 0x0000_FFFF_0000_FFFF),
        (8, 0x00FF_00FF_00FF_00FF),
        (4, 0x0F0F_0F0F_0F0F_0F0F),
        (2, 0x3333_3333_3333_3333),
        (1, 0x5555_5555_5555_5555),
    ] {
        bits = (bits | (bits << shift)) & mask;
    }
    bits
}

/// A box of coordinates, its edges included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    min: Coordinates,
    max: Coordinates,
}

/// Why four numbers are not a valid box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each message says it")]
pub enum InvalidBounds {
    #[error("minLat and maxLat must be numbers from -90 to 90")]
    Latitude,
    #[error("minLng and maxLng must be numbers from -180 to 180")]
    Longitude,
    #[error("minLat must not be greater than maxLat")]
    LatitudeOrder,
    #[error(
        "minLng must not be greater than maxLng; ask for two boxes to cross the 180th meridian"
    )]
    LongitudeOrder,
}

impl Bounds {
    /// The box between two corners, in decimal degrees.
    ///
    /// # Errors
    /// [`InvalidBounds`] when a number is outside its range or not finite, or a minimum is greater
    /// than its maximum.
    pub fn new(
        min_lat: f64,
        min_lng: f64,
        max_lat: f64,
        max_lng: f64,
    ) -> Result<Self, InvalidBounds> {
        let latitudes = -90.0..=90.0;
        let longitudes = -180.0..=180.0;
        if !latitudes.contains(&min_lat) || !latitudes.contains(&max_lat) {
            return Err(InvalidBounds::Latitude);
        }
        if !longitudes.contains(&min_lng) || !longitudes.contains(&max_lng) {
            return Err(InvalidBounds::Longitude);
        }
        if min_lat > max_lat {
            return Err(InvalidBounds::LatitudeOrder);
        }
        if min_lng > max_lng {
            return Err(InvalidBounds::LongitudeOrder);
        }
        Ok(Self {
            min: Coordinates::new(min_lat, min_lng).map_err(|_| InvalidBounds::Latitude)?,
            max: Coordinates::new(max_lat, max_lng).map_err(|_| InvalidBounds::Latitude)?,
        })
    }

    /// The south-western corner.
    pub const fn min(&self) -> Coordinates {
        self.min
    }

    /// The north-eastern corner.
    pub const fn max(&self) -> Coordinates {
        self.max
    }

    /// Whether a point is in the box.
    pub fn contains(&self, at: Coordinates) -> bool {
        (self.min.lat()..=self.max.lat()).contains(&at.lat())
            && (self.min.lng()..=self.max.lng()).contains(&at.lng())
    }

    /// The cells of the finest grid of which at most `max` touch the box, each as a range of codes,
    /// in order. A `max` below 4 may return 4: a box may lie on both a meridian and a parallel of
    /// every grid.
    pub fn grid(&self, max: usize) -> Vec<RangeInclusive<i64>> {
        let columns = column(self.min.lng())..=column(self.max.lng());
        let rows = row(self.min.lat())..=row(self.max.lat());
        let touched = |range: &RangeInclusive<u32>, shift: u32| {
            ((range.end() >> shift) - (range.start() >> shift)) as usize + 1
        };
        let shift = (0..BITS)
            .find(|shift| touched(&columns, *shift).saturating_mul(touched(&rows, *shift)) <= max)
            .unwrap_or(BITS);
        let mut cells: Vec<_> = (columns.start() >> shift..=columns.end() >> shift)
            .flat_map(|column| {
                (rows.start() >> shift..=rows.end() >> shift).map(move |row| morton(column, row))
            })
            .map(|code| {
                let first = code << (2 * shift);
                first..=first + ((1 << (2 * shift)) - 1)
            })
            .collect();
        cells.sort_unstable_by_key(|cell| *cell.start());
        cells
    }
}

/// Takes at most `max` items out of groups, round robin: the first of every group, then the second
/// of every group, and so on. With the grid's cells as groups, each sorted by code and id, this
/// selects the spots on a crowded map: deterministic, and spread over the box rather than from its
/// densest corner.
pub fn spread<T>(
    groups: impl IntoIterator<Item = impl IntoIterator<Item = T>>,
    max: usize,
) -> Vec<T> {
    // Groups are lazy: only the taken items are computed.
    let mut groups: Vec<_> = groups.into_iter().map(IntoIterator::into_iter).collect();
    let mut taken = Vec::new();
    while taken.len() < max && !groups.is_empty() {
        groups.retain_mut(|group| {
            if taken.len() < max
                && let Some(item) = group.next()
            {
                taken.push(item);
                return true;
            }
            false
        });
    }
    taken
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn point(lat: f64, lng: f64) -> Coordinates {
        Coordinates::new(lat, lng).unwrap()
    }

    #[test]
    fn the_corners_of_the_earth_have_cells() {
        assert_eq!(cell(point(-90.0, -180.0)), 0);
        assert_eq!(cell(point(90.0, 180.0)), (1 << (2 * BITS)) - 1);
    }

    #[test]
    fn a_box_is_checked() {
        assert!(Bounds::new(33.0, 124.0, 39.0, 132.0).is_ok());
        assert!(Bounds::new(37.0, 127.0, 37.0, 127.0).is_ok());
        assert_eq!(Bounds::new(f64::NAN, 0.0, 1.0, 1.0), Err(InvalidBounds::Latitude));
        assert_eq!(Bounds::new(0.0, 0.0, 1.0, f64::INFINITY), Err(InvalidBounds::Longitude));
        assert_eq!(Bounds::new(2.0, 0.0, 1.0, 1.0), Err(InvalidBounds::LatitudeOrder));
        assert_eq!(Bounds::new(0.0, 2.0, 1.0, 1.0), Err(InvalidBounds::LongitudeOrder));
    }

    #[test]
    fn the_whole_earth_has_a_grid() {
        let earth = Bounds::new(-90.0, -180.0, 90.0, 180.0).unwrap();
        assert_eq!(earth.grid(1), [0..=(1 << (2 * BITS)) - 1]);
        assert_eq!(earth.grid(500).len(), 256);
    }

    #[test]
    fn spreading_is_round_robin() {
        let groups = vec![vec![1, 2, 3], vec![], vec![4], vec![5, 6]];
        assert_eq!(spread(groups.clone(), 4), [1, 4, 5, 2]);
        assert_eq!(spread(groups.clone(), 100), [1, 4, 5, 2, 6, 3]);
        assert_eq!(spread(groups, 2), [1, 4]);
    }

    proptest! {
        #[test]
        fn every_point_of_a_box_is_in_one_cell_of_its_grid(
            lats in [-90.0..=90.0_f64, -90.0..=90.0],
            lngs in [-180.0..=180.0_f64, -180.0..=180.0],
            along in (0.0..=1.0_f64, 0.0..=1.0_f64),
            max in 4_usize..600,
        ) {
            let (south, north) = (lats[0].min(lats[1]), lats[0].max(lats[1]));
            let (west, east) = (lngs[0].min(lngs[1]), lngs[0].max(lngs[1]));
            let bounds = Bounds::new(south, west, north, east).unwrap();
            let inside = point(
                (south + (north - south) * along.0).clamp(south, north),
                (west + (east - west) * along.1).clamp(west, east),
            );
            let grid = bounds.grid(max);
            prop_assert!(grid.len() <= max);
            prop_assert!(grid.windows(2).all(|pair| pair[0].end() < pair[1].start()));
            let code = cell(inside);
            prop_assert_eq!(grid.iter().filter(|range| range.contains(&code)).count(), 1);
        }
    }
}
