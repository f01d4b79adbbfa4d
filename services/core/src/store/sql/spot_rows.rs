//! Spots in rows.

use sqlx::Row as _;

use super::Row;
use crate::domain::spot::{RawSpot, Spot, SpotContent, SpotId};
use crate::domain::tag::TagSet;

/// The columns that [`spot_of`] reads, of a table with the alias `s`.
macro_rules! spot_columns {
    () => {
        "s.id, s.version, s.name, s.address, s.lat, s.lng, s.tags, s.image_url, s.description, \
         s.phone_number"
    };
}
pub(super) use spot_columns;

/// The spot in a row with the columns of [`spot_columns`].
pub(super) fn spot_of(row: &Row) -> sqlx::Result<Spot> {
    let version: i64 = row.try_get("version")?;
    let content = SpotContent::trusted(RawSpot {
        name: row.try_get("name")?,
        address: row.try_get("address")?,
        lat: row.try_get("lat")?,
        lng: row.try_get("lng")?,
        tags: TagSet::from_bits(row.try_get("tags")?),
        image_url: row.try_get("image_url")?,
        description: row.try_get("description")?,
        phone_number: row.try_get("phone_number")?,
    })
    .map_err(|error| sqlx::Error::Decode(error.into()))?;
    Ok(Spot { id: SpotId::new(row.try_get("id")?), version: version.cast_unsigned(), content })
}
