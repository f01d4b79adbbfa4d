//! `recommendation.spots`: the replica of core's spots.

use async_trait::async_trait;
use tourin_shared_events::consumer::{Handler, HandlerError, Outcome, Received};
use tourin_shared_events::events::{Event, TourSpotDelete, TourSpotUpsert};

use super::{applied_or_duplicate, handler_error, spot_id, with_timeout};
use crate::app::ingest::Ingest;
use crate::app::ports::SpotState;
use crate::domain::spot::{Coordinates, NotASpotId, Spot};

/// Merges spots by version, a batch in one operation: an import sends thousands.
pub(super) struct SpotHandler(pub(super) Ingest);

#[async_trait]
impl Handler for SpotHandler {
    async fn handle(&self, event: &Received) -> Result<Outcome, HandlerError> {
        let Some(state) = state_of(event)? else { return Ok(Outcome::Ignored) };
        let merging = async { self.0.merge_spots(&[state]).await.map_err(handler_error) };
        Ok(applied_or_duplicate(with_timeout(merging).await? > 0))
    }

    /// If one event of a batch changes the replica, all count as applied. Failed events are retried
    /// one by one.
    async fn handle_batch(&self, events: &[Received]) -> Vec<Result<Outcome, HandlerError>> {
        if let [event] = events {
            return vec![event.run(self.handle(event)).await];
        }
        let mut states = Vec::with_capacity(events.len());
        let mut outcomes: Vec<Option<Result<Outcome, HandlerError>>> = Vec::new();
        for event in events {
            outcomes.push(match state_of(event) {
                Ok(Some(state)) => {
                    states.push(state);
                    None
                }
                Ok(None) => Some(Ok(Outcome::Ignored)),
                Err(error) => Some(Err(error)),
            });
        }
        let merging = with_timeout(async { Ok(self.0.merge_spots(&states).await) });
        let merged = match events.first() {
            // A span has one parent: the first event stands for the batch.
            Some(event) => event.run(merging).await,
            None => merging.await,
        };
        let of_merged = || match &merged {
            Ok(Ok(changed)) => Ok(applied_or_duplicate(*changed > 0)),
            Ok(Err(error)) => Err(handler_error(error.clone())),
            Err(error) => Err(HandlerError::Unavailable(anyhow::anyhow!("{error}"))),
        };
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(of_merged)).collect()
    }
}

/// The spot's state in an event, or `None` for an event of another type.
fn state_of(event: &Received) -> Result<Option<SpotState>, HandlerError> {
    Ok(match event.envelope.r#type.as_str() {
        TourSpotUpsert::TYPE => {
            let upsert: TourSpotUpsert = event.data()?;
            let spot = Spot::try_from(upsert)
                .map_err(|error| HandlerError::Permanent(format!("tourspot_id: {error}")))?;
            Some(SpotState::Live(spot))
        }
        TourSpotDelete::TYPE => {
            let deletion: TourSpotDelete = event.data()?;
            let (id, version) = (spot_id(&deletion.tourspot_id)?, deletion.version);
            Some(SpotState::Deleted { id, version })
        }
        _ => None,
    })
}

impl TryFrom<TourSpotUpsert> for Spot {
    type Error = NotASpotId;

    fn try_from(upsert: TourSpotUpsert) -> Result<Self, Self::Error> {
        Ok(Self {
            id: upsert.tourspot_id.parse()?,
            version: upsert.version,
            name: upsert.name,
            address: upsert.address,
            coordinates: Coordinates { lat: upsert.lat, lng: upsert.lng },
            image_url: upsert.image_url,
            tags: upsert.tags,
        })
    }
}
