//! Events as AMQP messages and back.

use std::collections::BTreeMap;

use bytes::Bytes;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Acker, BasicProperties};

use super::slots;
use crate::bus::{CORRELATION_ID, PublishError, REPLY_TO};
use crate::events::Outgoing;

/// The header with the ordering key.
pub(super) const ORDERING_KEY: &str = "x-ordering-key";
/// The header whose values RabbitMQ uses as further routing keys; here the slot of the ordering key.
const COPY: &str = "CC";
/// The first exchange of a message that was later published to a queue directly.
pub(super) const ORIGIN_EXCHANGE: &str = "x-tourin-origin-exchange";

/// How often a quorum queue redelivered a message.
const DELIVERY_COUNT: &str = "x-delivery-count";
/// Headers that the broker adds.
const BROKERS_OWN: [&str; 5] =
    [DELIVERY_COUNT, "x-acquired-count", "x-death", "x-opt-", "x-stream-"];
const PERSISTENT: u8 = 2;

/// The exchange of [`probe`], to which nothing is bound.
const PROBE_EXCHANGE: &str = "probe.ex";

/// The prefix of the headers that a dead letter adds to those of its event.
const DEAD_LETTER_PREFIX: &str = "x-tourin-dead-";

/// A received message.
pub(super) struct Incoming {
    pub(super) body: Bytes,
    /// Without the prefix.
    pub(super) exchange: String,
    pub(super) routing_key: String,
    pub(super) properties: BasicProperties,
    pub(super) acker: Acker,
}

/// A message ready to be published.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) body: Bytes,
    pub(super) properties: BasicProperties,
    /// It goes to a topic exchange, which may have to be declared first.
    pub(super) to_domain: bool,
}

/// A text as AMQP's short string, if it fits.
pub(super) fn short(text: impl Into<String>) -> Result<ShortString, PublishError> {
    ShortString::try_new(text).map_err(|_| {
        PublishError::Invalid(
            "a name or header is longer than the 255 bytes AMQP allows".to_owned(),
        )
    })
}

pub(super) fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

/// An event's headers as AMQP headers, and the two that are AMQP properties.
pub(super) fn properties(
    id: &str,
    headers: &BTreeMap<String, String>,
    own: &[(&str, &str)],
) -> Result<BasicProperties, PublishError> {
    let mut properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type("application/json".into())
        .with_message_id(short(id)?);
    let mut table = FieldTable::default();
    for (name, value) in headers {
        match name.as_str() {
            REPLY_TO => properties = properties.with_reply_to(short(value)?),
            CORRELATION_ID => properties = properties.with_correlation_id(short(value)?),
            _ => {
                table.insert(short(name)?, text(value));
            }
        }
    }
    for (name, value) in own {
        table.insert(short(*name)?, text(value));
    }
    Ok(properties.with_headers(table))
}

/// A message that no queue takes: the broker confirms and returns it, and keeps nothing.
///
/// It goes to an exchange of its own. A user that may write to the default exchange could write into every queue.
pub(super) fn probe(prefix: &str) -> Result<Message, PublishError> {
    Ok(Message {
        exchange: short(format!("{prefix}{PROBE_EXCHANGE}"))?,
        routing_key: "tourin.write-probe".into(),
        body: Bytes::new(),
        properties: BasicProperties::default(),
        to_domain: true,
    })
}

/// An event as a message; the exchange is named with `prefix`.
pub(super) fn message(event: &Outgoing, prefix: &str) -> Result<Message, PublishError> {
    let id = event.envelope.id.to_string();
    let own = [(ORDERING_KEY, event.ordering_key.as_str())];
    let seconds = u64::try_from(event.envelope.timestamp.timestamp()).unwrap_or_default();
    let properties = properties(&id, &event.headers, &own)?
        .with_type(short(&event.routing_key)?)
        .with_timestamp(seconds);
    Ok(Message {
        exchange: short(format!("{prefix}{}", event.exchange))?,
        routing_key: short(&event.routing_key)?,
        body: event.envelope.encode(),
        properties: in_slot_of(properties, &event.ordering_key),
        to_domain: true,
    })
}

/// Like `event`, with the slot of the key as a second routing key.
pub(super) fn in_slot_of(properties: BasicProperties, key: &str) -> BasicProperties {
    let mut table = properties.headers().clone().unwrap_or_default();
    let slot = text(&slots::routing_key(slots::slot(key)));
    table.insert(COPY.into(), AMQPValue::FieldArray(vec![slot].into()));
    properties.with_headers(table)
}

/// The text of a header.
pub(super) fn header(properties: &BasicProperties, name: &str) -> Option<String> {
    as_text(properties.headers().as_ref()?.inner().get(name)?)
}

pub(super) fn as_text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

/// The event's headers, without those of the broker and of this adapter.
pub(super) fn headers(properties: &BasicProperties) -> BTreeMap<String, String> {
    let mut headers = BTreeMap::new();
    for (name, value) in properties.headers().iter().flat_map(FieldTable::inner) {
        let name = name.as_str();
        let not_its_own = name == ORDERING_KEY
            || name == ORIGIN_EXCHANGE
            || name.starts_with(DEAD_LETTER_PREFIX)
            || name.starts_with("x-first-death-")
            || name.starts_with("x-last-death-")
            || BROKERS_OWN.iter().any(|own| name.starts_with(own));
        if !not_its_own && let Some(value) = as_text(value) {
            headers.insert(name.to_owned(), value);
        }
    }
    if let Some(reply_to) = properties.reply_to() {
        headers.insert(REPLY_TO.to_owned(), reply_to.to_string());
    }
    if let Some(id) = properties.correlation_id() {
        headers.insert(CORRELATION_ID.to_owned(), id.to_string());
    }
    headers
}

/// Whether the broker requeued the message before.
pub(super) fn was_requeued(properties: &BasicProperties) -> bool {
    let headers = properties.headers().as_ref();
    match headers.and_then(|headers| headers.inner().get(DELIVERY_COUNT)) {
        Some(AMQPValue::LongLongInt(count)) => *count > 0,
        Some(AMQPValue::LongInt(count)) => *count > 0,
        Some(AMQPValue::LongUInt(count)) => *count > 0,
        Some(AMQPValue::ShortShortUInt(count)) => *count > 0,
        Some(AMQPValue::ShortInt(count)) => *count > 0,
        Some(AMQPValue::ShortUInt(count)) => *count > 0,
        Some(AMQPValue::ShortShortInt(count)) => *count > 0,
        _ => false,
    }
}
