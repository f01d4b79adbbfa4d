//! `recommendation.history`: the histories of members.

use async_trait::async_trait;
use tourin_shared_events::consumer::{Handler, HandlerError, Outcome, Received};
use tourin_shared_events::events::{
    BookmarkTourspot, DeleteUser, Event, ReviewTourspot, UnbookmarkTourspot, ViewTourspot,
};

use super::{handler_error, moment, spot_id};
use crate::app::ingest::Ingest;
use crate::app::ports::HistoryOutcome;
use crate::domain::interaction::Change;

/// Records members' histories, and deletes the history of a deleted account.
pub(super) struct HistoryHandler(pub(super) Ingest);

#[async_trait]
impl Handler for HistoryHandler {
    async fn handle(&self, event: &Received) -> Result<Outcome, HandlerError> {
        let (member, spot, change) = match event.envelope.r#type.as_str() {
            ViewTourspot::TYPE => {
                let view: ViewTourspot = event.data()?;
                (view.user_id, view.tourspot_id, Change::Viewed)
            }
            // A member who reviews a spot knows it.
            ReviewTourspot::TYPE => {
                let review: ReviewTourspot = event.data()?;
                (review.user_id, review.tourspot_id, Change::Viewed)
            }
            BookmarkTourspot::TYPE => {
                let bookmark: BookmarkTourspot = event.data()?;
                (bookmark.user_id, bookmark.tourspot_id, Change::Bookmarked)
            }
            UnbookmarkTourspot::TYPE => {
                let removal: UnbookmarkTourspot = event.data()?;
                (removal.user_id, removal.tourspot_id, Change::Unbookmarked)
            }
            DeleteUser::TYPE => {
                let deleted: DeleteUser = event.data()?;
                self.0
                    .forget_history(&deleted.user_id, moment(&event.envelope))
                    .await
                    .map_err(handler_error)?;
                return Ok(Outcome::Applied);
            }
            _ => return Ok(Outcome::Ignored),
        };
        let kept = self
            .0
            .remember(&member, spot_id(&spot)?, change, moment(&event.envelope))
            .await
            .map_err(handler_error)?;
        Ok(match kept {
            Some(HistoryOutcome::Applied) => Outcome::Applied,
            Some(HistoryOutcome::Stale) => Outcome::Duplicate,
            Some(HistoryOutcome::Forgotten) | None => Outcome::Ignored,
        })
    }
}
