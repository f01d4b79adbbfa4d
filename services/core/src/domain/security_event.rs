//! Security events about sessions, as OpenID's Shared Signals Framework 1.0 and CAEP 1.0 exchange them in
//! Security Event Tokens (RFC 8417).

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::account::MemberId;
use super::token::SessionId;

/// The `typ` of a Security Event Token (RFC 8417, 2.3).
pub const EVENT_TOKEN_TYPE: &str = "secevent+jwt";
/// The media type of a Security Event Token (RFC 8417, 7.2).
pub const EVENT_MEDIA_TYPE: &str = "application/secevent+jwt";
/// CAEP 1.0, 3.1.
pub const SESSION_REVOKED: &str =
    "https://schemas.openid.net/secevent/caep/event-type/session-revoked";
/// Shared Signals Framework 1.0, 8.1.4: a transmitter tries a receiver with it.
pub const VERIFICATION: &str = "https://schemas.openid.net/secevent/ssf/event-type/verification";

/// The claims of an event. There is no `exp` and no `sub`, so that it is no other kind of JWT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventClaims {
    /// The transmitter.
    pub iss: String,
    /// The event's id, by which a repetition is known.
    pub jti: String,
    /// When the token was made, in seconds since the epoch.
    pub iat: i64,
    /// The receiver, or several.
    pub aud: Audience,
    /// Whom it is about (RFC 9493).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sub_id: Option<Value>,
    /// The events by their types.
    pub events: Map<String, Value>,
}

/// One receiver or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Audience {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

impl Audience {
    /// Whether the receiver is among them.
    pub fn has(&self, receiver: &str) -> bool {
        match self {
            Self::One(one) => one == receiver,
            Self::Several(several) => several.iter().any(|one| one == receiver),
        }
    }
}

impl EventClaims {
    /// That a session has ended.
    pub fn session_revoked(
        (issuer, audience): (&str, &str),
        jti: &str,
        session: SessionId,
        ended_at: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Self {
        let event = json!({"event_timestamp": ended_at.timestamp()});
        let session = json!({"format": "opaque", "id": session.to_string()});
        Self {
            iss: issuer.to_owned(),
            jti: jti.to_owned(),
            iat: now.timestamp(),
            aud: Audience::One(audience.to_owned()),
            // A plain id would not say whether it is a session's or a user's.
            sub_id: Some(json!({"format": "complex", "session": session})),
            events: Map::from_iter([(SESSION_REVOKED.to_owned(), event)]),
        }
    }

    /// The member that it is about: `opaque` with the member's id, `iss_sub` with one of `issuers`, or a
    /// `complex` subject whose `user` is one of these. `None` for any other subject.
    pub fn member(&self, issuers: &[&str]) -> Option<MemberId> {
        let subject = self.sub_id.as_ref()?;
        let user = if subject["format"] == "complex" { &subject["user"] } else { subject };
        let id = match user["format"].as_str()? {
            "opaque" => user["id"].as_str()?,
            "iss_sub" if issuers.contains(&user["iss"].as_str()?) => user["sub"].as_str()?,
            _ => return None,
        };
        MemberId::parse(id).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(subject: Value) -> EventClaims {
        EventClaims {
            iss: "https://idp.example".to_owned(),
            jti: "j".to_owned(),
            iat: 0,
            aud: Audience::One("https://tourin.example".to_owned()),
            sub_id: Some(subject),
            events: Map::new(),
        }
    }

    #[test]
    fn a_member_is_named_in_three_ways() {
        let of = |subject| about(subject).member(&["https://tourin.example"]);
        let hana = MemberId::parse("hana12345").ok();
        let opaque = json!({"format": "opaque", "id": "hana12345"});
        let iss = |iss: &str| json!({"format": "iss_sub", "iss": iss, "sub": "hana12345"});
        for named in [
            opaque.clone(),
            iss("https://tourin.example"),
            json!({"format": "complex", "user": opaque, "session": {"format": "opaque", "id": "s"}}),
            json!({"format": "complex", "user": iss("https://tourin.example")}),
        ] {
            assert_eq!(of(named.clone()), hana, "{named}");
        }
        for unnamed in [
            iss("https://elsewhere.example"),
            json!({"format": "email", "email": "hana@example.com"}),
            json!({"format": "complex", "session": {"format": "opaque", "id": "hana12345"}}),
            json!({"format": "opaque", "id": "no member's id"}),
            json!({"format": "opaque"}),
            json!("hana12345"),
            json!({}),
        ] {
            assert_eq!(of(unnamed.clone()), None, "{unnamed}");
        }
    }
}
