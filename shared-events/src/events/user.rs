//! Events of members and visitors: exchange `event.user.ex`, ordered per user.

use serde::{Deserialize, Serialize};

use super::{Event, InvalidEvent, USER_EXCHANGE, validation};

/// Whether a `user_id` belongs to a visitor who is not signed in.
pub fn is_pseudonym(user_id: &str) -> bool {
    validation::is_pseudonym(user_id)
}

macro_rules! user_event {
    ($(#[$doc:meta])* $name:ident, $type:literal, { $($(#[$field_doc:meta])* $field:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub struct $name {
            /// A member's id, or a visitor's pseudonym `anon:<base32>`.
            pub user_id: String,
            $($(#[$field_doc])* pub $field: String,)*
        }

        impl Event for $name {
            const TYPE: &'static str = $type;
            const EXCHANGE: &'static str = USER_EXCHANGE;

            fn ordering_key(&self) -> String {
                self.user_id.clone()
            }

            fn validate(&self) -> Result<(), InvalidEvent> {
                validation::user_id(&self.user_id)?;
                $(validation::numeric_id(stringify!($field), &self.$field)?;)*
                Ok(())
            }
        }
    };
}

user_event! {
    /// Someone opened a spot's page.
    ViewTourspot, "user.viewTourspot", {
        /// The spot's id.
        tourspot_id,
    }
}
user_event! {
    /// A member bookmarked a spot.
    BookmarkTourspot, "user.bookmarkTourspot", {
        /// The spot's id.
        tourspot_id,
    }
}
user_event! {
    /// A member removed a bookmark.
    UnbookmarkTourspot, "user.unbookmarkTourspot", {
        /// The spot's id.
        tourspot_id,
    }
}
user_event! {
    /// A member reviewed a spot.
    ReviewTourspot, "user.reviewTourspot", {
        /// The spot's id.
        tourspot_id,
        /// The review's id.
        review_id,
    }
}
user_event! {
    /// A member deleted a review.
    DeleteReview, "user.deleteReview", {
        /// The spot's id.
        tourspot_id,
        /// The review's id.
        review_id,
    }
}
user_event! {
    /// A member's account ended: delete all data of this id.
    DeleteUser, "user.delete", {}
}
