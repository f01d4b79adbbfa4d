//! The typed events, and the form in which a service publishes one.
//!
//! Exchanges are named for the domain of their facts, not for their consumers.

mod tour_spot;
mod user;
mod validation;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::envelope::Envelope;

pub use tour_spot::{TourSpotDelete, TourSpotUpsert, limits};
pub use user::{
    BookmarkTourspot, DeleteReview, DeleteUser, ReviewTourspot, UnbookmarkTourspot, ViewTourspot,
    is_pseudonym,
};

/// The exchange of the events of members and visitors.
pub const USER_EXCHANGE: &str = "event.user.ex";
/// The exchange of the events of tour spots.
pub const TOUR_SPOT_EXCHANGE: &str = "event.tour-spot.ex";

/// A typed payload: the `data` of one event type.
pub trait Event: Serialize + DeserializeOwned {
    /// The envelope's `type`, and the routing key.
    const TYPE: &'static str;
    /// The exchange of its publication.
    const EXCHANGE: &'static str;

    /// Events of one key take effect in the order in which they were committed.
    fn ordering_key(&self) -> String;

    /// Checks the rules beyond the types.
    ///
    /// # Errors
    /// The first invalid field, and its rule. Consumers dead-letter such an event.
    fn validate(&self) -> Result<(), InvalidEvent>;
}

/// Why a payload is not a valid event of its type. Names the field, never quotes the value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEvent {
    /// The envelope carries another type than expected.
    #[error("expected an event of type {expected}, found {found}")]
    Type {
        /// The expected type.
        expected: &'static str,
        /// The envelope's type.
        found: String,
    },
    /// The data does not have the type's fields.
    #[error("data does not have the shape of {0}")]
    Shape(&'static str),
    /// A field breaks its rule.
    #[error("field {field} {rule}")]
    Field {
        /// The field's name in `data`.
        field: &'static str,
        /// The rule it breaks, as the end of a sentence: "must be ...".
        rule: &'static str,
    },
}

/// Parses the payload of an envelope as a typed, validated event.
///
/// ```
/// use tourin_shared_events::events::{DeleteUser, Outgoing, ViewTourspot, read};
///
/// let view = ViewTourspot { user_id: "hana12345".into(), tourspot_id: "1".into() };
/// let event = Outgoing::new(&view, chrono::Utc::now());
/// assert_eq!(read::<ViewTourspot>(&event.envelope), Ok(view));
/// assert!(read::<DeleteUser>(&event.envelope).is_err());
/// ```
///
/// # Errors
/// [`InvalidEvent`] when the type differs, fields are missing or of the wrong type, or a rule is broken.
pub fn read<E: Event>(envelope: &Envelope) -> Result<E, InvalidEvent> {
    if envelope.r#type != E::TYPE {
        return Err(InvalidEvent::Type { expected: E::TYPE, found: envelope.r#type.clone() });
    }
    let event = E::deserialize(&envelope.data).map_err(|_| InvalidEvent::Shape(E::TYPE))?;
    event.validate()?;
    Ok(event)
}

/// An event ready for the outbox: the envelope and its routing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outgoing {
    /// The envelope.
    pub envelope: Envelope,
    /// The domain's exchange.
    pub exchange: String,
    /// The routing key; the envelope's type.
    pub routing_key: String,
    /// See [`Event::ordering_key`].
    pub ordering_key: String,
    /// The transport's metadata, such as trace context; never part of the envelope.
    pub headers: BTreeMap<String, String>,
}

impl Outgoing {
    /// Wraps a payload in a fresh envelope.
    ///
    /// ```
    /// use tourin_shared_events::events::{Outgoing, ViewTourspot};
    ///
    /// let view = ViewTourspot { user_id: "hana12345".into(), tourspot_id: "1".into() };
    /// let event = Outgoing::new(&view, chrono::Utc::now());
    /// assert_eq!(event.routing_key, "user.viewTourspot");
    /// assert_eq!(event.ordering_key, "hana12345");
    /// ```
    ///
    /// It does not validate. Call [`Event::validate`] first on values from outside: consumers dead-letter an invalid
    /// event.
    pub fn new<E: Event>(event: &E, occurred_at: DateTime<Utc>) -> Self {
        let data = serde_json::to_value(event)
            .expect("payloads are structs of strings and numbers, which JSON can hold");
        Self {
            envelope: Envelope::new(E::TYPE, occurred_at, data),
            exchange: E::EXCHANGE.to_owned(),
            routing_key: E::TYPE.to_owned(),
            ordering_key: event.ordering_key(),
            headers: BTreeMap::new(),
        }
    }

    /// Adds a header.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }
}
