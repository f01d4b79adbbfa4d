//! Parses a record into a spot, or into the reason why it is invalid.

use serde::Deserialize;
use serde_json::Value;
use tourin_chassis::http::read_value;
use tourin_chassis::text;

use super::ImportError;
use crate::domain::spot::{RawSpot, SpotContent, SpotDraft, SpotId};
use crate::domain::tag::TagSet;

/// The columns by their public names; the required ones come first.
const COLUMNS: [&str; 9] =
    ["id", "name", "address", "lat", "lng", "tags", "description", "phoneNumber", "imageUrl"];
const REQUIRED: usize = 6;

/// The position of each of [`COLUMNS`] in a CSV file.
pub(super) struct Header {
    positions: [Option<usize>; COLUMNS.len()],
    width: usize,
}

impl Header {
    /// Reads the column names of the first row, in any order, as `phoneNumber` or `phone_number`.
    /// Other columns are ignored.
    pub(super) fn parse(row: &[String]) -> Result<Self, ImportError> {
        let mut positions = [None; COLUMNS.len()];
        for (position, name) in row.iter().enumerate() {
            let plain = plain(name);
            if let Some(column) = COLUMNS.iter().position(|column| *column.to_lowercase() == plain)
                && positions[column].replace(position).is_some()
            {
                return Err(ImportError::Header(format!("the column {name} is there twice")));
            }
        }
        let missing: Vec<_> = COLUMNS[..REQUIRED]
            .iter()
            .zip(positions)
            .filter_map(|(column, position)| position.is_none().then_some(*column))
            .collect();
        if missing.is_empty() {
            Ok(Self { positions, width: row.len() })
        } else {
            Err(ImportError::Header(format!("the first line has no column {}", missing.join(", "))))
        }
    }

    /// The spot in a row.
    pub(super) fn spot(&self, mut row: Vec<String>) -> Result<SpotDraft, String> {
        if row.len() != self.width {
            return Err(format!("{} fields where the header has {}", row.len(), self.width));
        }
        let mut take = |column: usize| {
            self.positions[column]
                .map(|position| std::mem::take(&mut row[position]))
                .unwrap_or_default()
        };
        let id = take(0);
        let (name, address) = (take(1), take(2));
        let (lat, lng) = (degrees("lat", &take(3))?, degrees("lng", &take(4))?);
        let tags = tags(take(5).split('|'))?;
        let raw = RawSpot {
            name,
            address,
            lat,
            lng,
            tags,
            description: Some(take(6)),
            phone_number: Some(take(7)),
            image_url: Some(take(8)),
        };
        draft(&id, raw)
    }
}

fn plain(name: &str) -> String {
    text::line(name).trim().chars().filter(|c| *c != '_').flat_map(char::to_lowercase).collect()
}

/// A line of NDJSON; other members are ignored.
#[derive(Deserialize)]
struct Line {
    id: Value,
    name: String,
    address: String,
    lat: f64,
    lng: f64,
    tags: Value,
    description: Option<String>,
    #[serde(rename = "phoneNumber", alias = "phone_number")]
    phone_number: Option<String>,
    #[serde(rename = "imageUrl", alias = "image_url")]
    image_url: Option<String>,
}

pub(super) fn spot_of_line(line: &str) -> Result<SpotDraft, String> {
    // The line number of the file is reported separately.
    let line: Value = serde_json::from_str(line)
        .map_err(|error| format!("it is not JSON: look at column {}", error.column()))?;
    let line: Line = read_value(line).map_err(|message| message.to_string())?;
    let id = match line.id {
        Value::String(id) => id,
        Value::Number(id) => id.to_string(),
        _ => return Err("id must be a string or a number".to_owned()),
    };
    let wrong_tags = "tags must be a list of strings, or one string with | between";
    let tags = match &line.tags {
        Value::Array(names) => {
            let names: Option<Vec<_>> = names.iter().map(Value::as_str).collect();
            tags(names.ok_or(wrong_tags)?.into_iter())?
        }
        Value::String(names) => tags(names.split('|'))?,
        _ => return Err(wrong_tags.to_owned()),
    };
    let raw = RawSpot {
        name: line.name,
        address: line.address,
        lat: line.lat,
        lng: line.lng,
        tags,
        description: line.description,
        phone_number: line.phone_number,
        image_url: line.image_url,
    };
    draft(&id, raw)
}

fn degrees(field: &str, typed: &str) -> Result<f64, String> {
    text::line(typed).trim().parse().map_err(|_| format!("{field} is not a number"))
}

fn tags<'a>(names: impl Iterator<Item = &'a str>) -> Result<TagSet, String> {
    let names = names.map(text::line);
    let names = names.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
    TagSet::parse(names).map_err(|error| error.to_string())
}

fn draft(id: &str, raw: RawSpot) -> Result<SpotDraft, String> {
    let id: SpotId = text::line(id).trim().parse().map_err(|error| format!("id: {error}"))?;
    let content = SpotContent::new(raw).map_err(|error| error.to_string())?;
    Ok(SpotDraft { id, content })
}
