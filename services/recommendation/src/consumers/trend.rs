//! `recommendation.trend`: counts interactions for the trend.

use async_trait::async_trait;
use tourin_shared_events::consumer::{Handler, HandlerError, Outcome, Received};
use tourin_shared_events::events::{BookmarkTourspot, DeleteUser, Event, ViewTourspot};

use super::{handler_error, moment, spot_id};
use crate::app::ingest::Ingest;
use crate::app::ports::TrendOutcome;
use crate::domain::interaction::Kind;

/// Counts views and bookmarks, also of visitors, and deletes the records of a deleted account.
pub(super) struct TrendHandler(pub(super) Ingest);

#[async_trait]
impl Handler for TrendHandler {
    async fn handle(&self, event: &Received) -> Result<Outcome, HandlerError> {
        match event.envelope.r#type.as_str() {
            ViewTourspot::TYPE => {
                let view: ViewTourspot = event.data()?;
                self.count(event, &view.user_id, &view.tourspot_id, Kind::View).await
            }
            BookmarkTourspot::TYPE => {
                let bookmark: BookmarkTourspot = event.data()?;
                let BookmarkTourspot { user_id, tourspot_id } = bookmark;
                self.count(event, &user_id, &tourspot_id, Kind::Bookmark).await
            }
            DeleteUser::TYPE => {
                let deleted: DeleteUser = event.data()?;
                self.0
                    .forget_in_trend(&deleted.user_id, moment(&event.envelope))
                    .await
                    .map_err(handler_error)?;
                Ok(Outcome::Applied)
            }
            _ => Ok(Outcome::Ignored),
        }
    }
}

impl TrendHandler {
    async fn count(
        &self,
        event: &Received,
        subject: &str,
        spot: &str,
        kind: Kind,
    ) -> Result<Outcome, HandlerError> {
        let envelope = &event.envelope;
        let counted = self
            .0
            .count((envelope.id, event.dated_at), subject, spot_id(spot)?, kind, moment(envelope))
            .await
            .map_err(handler_error)?;
        Ok(match counted {
            TrendOutcome::Applied => Outcome::Applied,
            TrendOutcome::Duplicate => Outcome::Duplicate,
            TrendOutcome::AlreadyCounted => Outcome::Ignored,
        })
    }
}
