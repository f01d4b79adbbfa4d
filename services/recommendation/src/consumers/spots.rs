//! `recommendation.spots`: the replica of core's spots.

use async_trait::async_trait;
use tourin_shared_events::consumer::{Handler, HandlerError, Outcome, Received};
use tourin_shared_events::events::{Event, TourSpotDelete, TourSpotUpsert};

use super::{applied_or_duplicate, not_handled, spot_id};
use crate::app::ingest::Ingest;
use crate::app::ports::SpotState;
use crate::domain::spot::{NotASpotId, Place, Spot};

/// Merges spots by their versions.
pub(super) struct SpotHandler(pub(super) Ingest);

#[async_trait]
impl Handler for SpotHandler {
    async fn handle(&self, event: &Received) -> Result<Outcome, HandlerError> {
        let state = match event.envelope.r#type.as_str() {
            TourSpotUpsert::TYPE => {
                let upsert: TourSpotUpsert = event.data()?;
                let spot = Spot::try_from(upsert)
                    .map_err(|error| HandlerError::Permanent(format!("tourspot_id: {error}")))?;
                SpotState::Live(spot)
            }
            TourSpotDelete::TYPE => {
                let deletion: TourSpotDelete = event.data()?;
                SpotState::Deleted {
                    id: spot_id(&deletion.tourspot_id)?,
                    version: deletion.version,
                }
            }
            _ => return Ok(Outcome::Ignored),
        };
        let applied = self.0.merge_spot(state).await.map_err(not_handled)?;
        Ok(applied_or_duplicate(applied))
    }
}

impl TryFrom<TourSpotUpsert> for Spot {
    type Error = NotASpotId;

    fn try_from(upsert: TourSpotUpsert) -> Result<Self, Self::Error> {
        Ok(Self {
            id: upsert.tourspot_id.parse()?,
            version: upsert.version,
            name: upsert.name,
            address: upsert.address,
            place: Place { lat: upsert.lat, lng: upsert.lng },
            image_url: upsert.image_url,
            tags: upsert.tags,
        })
    }
}
