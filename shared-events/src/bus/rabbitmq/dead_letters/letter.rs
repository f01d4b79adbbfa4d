//! Dead letters as messages, and messages as dead letters.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable};
use uuid::{Builder, Uuid};

use crate::bus::PublishError;
use crate::bus::rabbitmq::topology::{dead_queue, slots_exchange};
use crate::bus::rabbitmq::wire::{self, Incoming, Message, short};
use crate::dead_letters::{DeadLetter, Route};
use crate::envelope::Envelope;

const QUEUE: &str = "x-tourin-dead-queue";
const REASON: &str = "x-tourin-dead-reason";
const ATTEMPTS: &str = "x-tourin-dead-attempts";
const EXCHANGE: &str = "x-tourin-dead-exchange";
const ROUTING_KEY: &str = "x-tourin-dead-routing-key";
const EVENT_ID: &str = "x-tourin-dead-event-id";
const FAILED_AT: &str = "x-tourin-dead-failed-at";
const BODY_BYTES: &str = "x-tourin-dead-body-bytes";

/// A dead-lettered delivery as a message for the dead queue of its queue.
pub(in crate::bus::rabbitmq) fn message(
    prefix: &str,
    queue: &str,
    incoming: &Incoming,
    attempts: u32,
    reason: &str,
) -> Result<Message, PublishError> {
    let properties = &incoming.properties;
    let route = Route {
        exchange: incoming.exchange.clone(),
        routing_key: incoming.routing_key.clone(),
        ordering_key: wire::header(properties, wire::ORDERING_KEY),
    };
    let event_id = Envelope::decode(&incoming.body).map(|envelope| envelope.id).ok();
    let (body, headers) = (&incoming.body, wire::headers(properties));
    let reason = reason.to_owned();
    let letter =
        DeadLetter::new(queue, event_id, route, reason, attempts, body, headers, Utc::now());
    // The broker keeps the complete body.
    let whole = DeadLetter { body: body.clone(), ..letter };
    of_letter(prefix, &whole)
}

/// A letter as a message for the dead queue of its queue.
pub(super) fn of_letter(prefix: &str, letter: &DeadLetter) -> Result<Message, PublishError> {
    let attempts = letter.attempts.to_string();
    let failed_at = letter.failed_at.to_rfc3339();
    let event_id = letter.event_id.map(|id| id.to_string());
    let body_bytes = letter.is_cut().then(|| letter.body_bytes.to_string());
    let mut own = vec![
        (QUEUE, letter.queue.as_str()),
        (REASON, &letter.reason),
        (ATTEMPTS, &attempts),
        (EXCHANGE, &letter.exchange),
        (ROUTING_KEY, &letter.routing_key),
        (FAILED_AT, &failed_at),
    ];
    own.extend(event_id.as_deref().map(|id| (EVENT_ID, id)));
    own.extend(body_bytes.as_deref().map(|bytes| (BODY_BYTES, bytes)));
    own.extend(letter.ordering_key.as_deref().map(|key| (wire::ORDERING_KEY, key)));
    Ok(Message {
        exchange: short(dead_queue(prefix, &letter.queue))?,
        routing_key: short(&letter.routing_key)?,
        body: letter.body.clone(),
        properties: wire::properties(&letter.id.to_string(), &letter.headers, &own)?,
        to_domain: false,
    })
}

/// The event of a letter, for the queue that dead-lettered it and no other. `body` is the complete body.
pub(super) fn replay(
    prefix: &str,
    letter: &DeadLetter,
    body: &Bytes,
) -> Result<Message, PublishError> {
    let id = letter.event_id.unwrap_or(letter.id).to_string();
    let mut own = vec![(wire::ORIGIN_EXCHANGE, letter.exchange.as_str())];
    own.extend(letter.ordering_key.as_deref().map(|key| (wire::ORDERING_KEY, key)));
    let properties = wire::properties(&id, &letter.replay_headers(), &own)?
        .with_type(short(&letter.routing_key)?);
    Ok(Message {
        exchange: short(slots_exchange(prefix, &letter.queue))?,
        routing_key: short(&letter.routing_key)?,
        body: body.clone(),
        properties: wire::in_slot_of(properties, letter.ordering_key.as_deref().unwrap_or(&id)),
        to_domain: false,
    })
}

/// A message of a dead queue as a letter.
pub(super) fn read(
    prefix: &str,
    queue: &str,
    delivery: &Delivery,
    delivery_limit: u32,
) -> DeadLetter {
    let properties = &delivery.properties;
    let own = |name: &str| wire::header(properties, name);
    let message_id = properties.message_id().as_ref().and_then(|id| id.as_str().parse().ok());
    let body = Bytes::copy_from_slice(&delivery.data);
    let headers = wire::headers(properties);
    let ordering_key = own(wire::ORDERING_KEY);
    let Some(reason) = own(REASON) else {
        let death = Death::of(prefix, properties);
        let route = Route {
            exchange: own(wire::ORIGIN_EXCHANGE).unwrap_or(death.exchange),
            routing_key: death.routing_key,
            ordering_key,
        };
        let id = message_id.unwrap_or_else(|| derived_id(death.at, &body));
        let letter = DeadLetter::new(
            queue,
            Envelope::decode(&body).map(|envelope| envelope.id).ok(),
            route,
            death.reason,
            delivery_limit,
            &body,
            headers,
            death.at,
        );
        return DeadLetter { id, ..letter };
    };
    let route = Route {
        exchange: own(EXCHANGE).unwrap_or_default(),
        routing_key: own(ROUTING_KEY).unwrap_or_default(),
        ordering_key,
    };
    let failed_at = own(FAILED_AT).and_then(|at| DateTime::parse_from_rfc3339(&at).ok());
    let failed_at = failed_at.map(|at| at.with_timezone(&Utc)).unwrap_or_default();
    let event_id = own(EVENT_ID).and_then(|id| id.parse().ok());
    let attempts = own(ATTEMPTS).and_then(|n| n.parse().ok()).unwrap_or_default();
    let letter =
        DeadLetter::new(queue, event_id, route, reason, attempts, &body, headers, failed_at);
    let cut_before = own(BODY_BYTES).and_then(|bytes| bytes.parse().ok());
    DeadLetter {
        id: message_id.unwrap_or_else(|| derived_id(failed_at, &body)),
        body_bytes: cut_before.unwrap_or(letter.body_bytes),
        ..letter
    }
}

/// The id of a letter that came without one: always the same for the same message.
fn derived_id(at: DateTime<Utc>, body: &[u8]) -> Uuid {
    let hash = body.iter().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b)
    });
    let mut random = [0; 10];
    random.copy_from_slice(&hash.to_be_bytes()[6..]);
    let millis = u64::try_from(at.timestamp_millis()).unwrap_or_default();
    Builder::from_unix_timestamp_millis(millis, &random).into_uuid()
}

/// What the broker says of a message that it dead-lettered itself, because no consumer settled it.
struct Death {
    reason: String,
    exchange: String,
    routing_key: String,
    at: DateTime<Utc>,
}

impl Death {
    fn of(prefix: &str, properties: &BasicProperties) -> Self {
        let headers = properties.headers().as_ref().map(FieldTable::inner);
        let latest = match headers.and_then(|headers| headers.get("x-death")) {
            Some(AMQPValue::FieldArray(deaths)) => deaths.as_slice().first(),
            _ => None,
        };
        let latest: BTreeMap<_, _> = match latest {
            Some(AMQPValue::FieldTable(death)) => death.inner().clone(),
            _ => BTreeMap::new(),
        };
        let exchange = latest.get("exchange").and_then(wire::as_text).unwrap_or_default();
        let why = wire::header(properties, "x-first-death-reason").unwrap_or_default();
        let at = match latest.get("time") {
            Some(AMQPValue::Timestamp(seconds)) => i64::try_from(*seconds).ok(),
            _ => None,
        };
        Self {
            reason: match why.as_str() {
                "delivery_limit" => "too many consumers were lost while they held it".to_owned(),
                other => format!("dead-lettered by the broker: {other}"),
            },
            exchange: exchange.strip_prefix(prefix).unwrap_or(&exchange).to_owned(),
            routing_key: properties.kind().as_ref().map(ToString::to_string).unwrap_or_default(),
            at: at.and_then(|at| DateTime::from_timestamp(at, 0)).unwrap_or_default(),
        }
    }
}
