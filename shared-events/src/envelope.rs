//! The envelope that every event travels in: `{id, type, timestamp, data}`, exactly.

use bytes::Bytes;
use chrono::{DateTime, SubsecRound as _, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

/// The longest event type, in bytes; the limit AMQP sets on a routing key.
pub const MAX_TYPE_BYTES: usize = 255;

/// The field of an event's data with its version: of two changes of one thing, the later one has the higher version.
pub(crate) const VERSION: &str = "version";

/// One event on the wire.
///
/// ```
/// use serde_json::json;
/// use tourin_shared_events::envelope::Envelope;
///
/// let envelope = Envelope::new("user.delete", chrono::Utc::now(), json!({"user_id": "hana12345"}));
/// assert_eq!(Envelope::decode(&envelope.encode()), Ok(envelope));
/// assert!(Envelope::decode(b"rubbish").is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// Unique, UUID version 7. Consumers dedupe by it.
    pub id: Uuid,
    /// The schema of `data`, and the routing key.
    pub r#type: String,
    /// When the change happened (not when it was sent), to the microsecond.
    pub timestamp: DateTime<Utc>,
    /// The payload, a JSON object.
    pub data: Value,
}

/// Why bytes are not an envelope. Names the fault and never quotes the payload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEnvelope {
    /// Not JSON, or not of the envelope's shape.
    #[error("not an event envelope: {0} error at line {1} column {2}")]
    Shape(&'static str, usize, usize),
    /// The all-zero id, which cannot dedupe anything.
    #[error("the event's id is nil")]
    NilId,
    /// Empty, longer than [`MAX_TYPE_BYTES`], or with characters that a routing key cannot have.
    #[error("the event's type is empty, too long or not printable ASCII without spaces")]
    Type,
    /// `data` is not a JSON object.
    #[error("the event's data is not an object")]
    Data,
}

impl Envelope {
    /// A new event with a fresh id.
    pub fn new(r#type: impl Into<String>, timestamp: DateTime<Utc>, data: Value) -> Self {
        Self {
            id: Uuid::now_v7(),
            r#type: r#type.into(),
            timestamp: timestamp.trunc_subsecs(6),
            data,
        }
    }

    /// The version, set by the outbox of the service that owns the thing. Of two changes of one thing, the later one
    /// has the higher version, whatever their timestamps. An event without a version is older than versions, and so
    /// earlier than every event with one.
    pub fn version(&self) -> Option<u64> {
        self.data.get(VERSION)?.as_u64()
    }

    /// The wire form.
    pub fn encode(&self) -> Bytes {
        serde_json::to_vec(self)
            .expect("an envelope has string keys only and writing to memory does not fail")
            .into()
    }

    /// Parses and checks the wire form. Unknown fields are ignored, so that the envelope can grow.
    ///
    /// # Errors
    /// [`InvalidEnvelope`] when it is not JSON of this shape, the id is nil, the type cannot be a routing key, or
    /// the data is not an object.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidEnvelope> {
        let envelope: Self = serde_json::from_slice(bytes).map_err(|e| {
            // The parser's message may quote values, which may be personal data.
            let class = match e.classify() {
                serde_json::error::Category::Syntax => "syntax",
                serde_json::error::Category::Data => "shape",
                serde_json::error::Category::Eof => "truncation",
                serde_json::error::Category::Io => "read",
            };
            InvalidEnvelope::Shape(class, e.line(), e.column())
        })?;
        envelope.check()?;
        Ok(envelope)
    }

    fn check(&self) -> Result<(), InvalidEnvelope> {
        if self.id.is_nil() {
            return Err(InvalidEnvelope::NilId);
        }
        let sound = (1..=MAX_TYPE_BYTES).contains(&self.r#type.len())
            && self.r#type.bytes().all(|b| b.is_ascii_graphic());
        if !sound {
            return Err(InvalidEnvelope::Type);
        }
        if !self.data.is_object() {
            return Err(InvalidEnvelope::Data);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                proptest::collection::btree_map(any::<String>(), inner, 0..6)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn encoding_round_trips(
            r#type in "[!-~]{1,255}",
            // Years 1 to 9999, the range of RFC 3339.
            micros in -62_135_596_800_000_000_i64..253_402_300_799_000_000,
            data in proptest::collection::btree_map(any::<String>(), any_json(), 0..6),
        ) {
            let at = DateTime::from_timestamp_micros(micros).unwrap();
            let data = Value::Object(data.into_iter().collect());
            let envelope = Envelope::new(r#type, at, data);
            prop_assert_eq!(Envelope::decode(&envelope.encode()), Ok(envelope));
        }

        #[test]
        fn any_bytes_are_refused_or_read_but_never_panic(bytes: Vec<u8>) {
            if let Ok(envelope) = Envelope::decode(&bytes) {
                prop_assert_eq!(Envelope::decode(&envelope.encode()), Ok(envelope));
            }
        }
    }

    #[test]
    fn the_wire_form_has_exactly_four_fields() {
        let at = DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap();
        let envelope = Envelope::new("user.delete", at, json!({"user_id": "traveller1"}));
        let wire: Value = serde_json::from_slice(&envelope.encode()).unwrap();
        assert_eq!(
            wire,
            json!({
                "id": envelope.id.to_string(),
                "type": "user.delete",
                "timestamp": "2023-11-14T22:13:20.123456Z",
                "data": {"user_id": "traveller1"},
            })
        );
        assert_eq!(envelope.id.get_version_num(), 7);
    }

    #[test]
    fn a_fault_is_named_without_quoting_the_payload() {
        let refused = |body: Value| Envelope::decode(body.to_string().as_bytes()).unwrap_err();
        let good = json!({"id": Uuid::now_v7(), "type": "a.b", "timestamp": "2024-01-01T00:00:00Z", "data": {}});
        let with = |key: &str, value: Value| {
            let mut body = good.clone();
            body[key] = value;
            body
        };
        assert!(Envelope::decode(good.to_string().as_bytes()).is_ok());
        assert!(Envelope::decode(with("later", json!(1)).to_string().as_bytes()).is_ok());
        assert_eq!(refused(with("id", json!(Uuid::nil()))), InvalidEnvelope::NilId);
        assert_eq!(refused(with("type", json!(""))), InvalidEnvelope::Type);
        assert_eq!(refused(with("type", json!("a b"))), InvalidEnvelope::Type);
        assert_eq!(refused(with("data", json!([1]))), InvalidEnvelope::Data);
        let shape = refused(with("timestamp", json!("secret-value")));
        assert!(matches!(shape, InvalidEnvelope::Shape("shape", _, _)), "{shape:?}");
        assert!(!shape.to_string().contains("secret-value"), "{shape}");
        assert!(matches!(Envelope::decode(b"{"), Err(InvalidEnvelope::Shape("truncation", _, _))));
    }
}
