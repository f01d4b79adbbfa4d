//! Patterns of asynchronous messaging besides plain publish/subscribe, which [`Publisher`] and
//! [`Subscriber`] are.
//!
//! | pattern | who sends | who receives | what comes back |
//! |---|---|---|---|
//! | publish/subscribe | [`Publisher::publish`] | every queue that is bound for it | nothing |
//! | one-way command | [`Commands::send`] | the one queue it names | nothing |
//! | request/asynchronous reply | [`Requests::request`] | the one queue it names | one reply, or a time-out |
//! | publish/asynchronous responses | [`Requests::publish`] | every queue that is bound for it | replies, up to a number and a time limit |
//!
//! All of them use the bus's publisher and queues. So commands and requests have the guarantees of events: delivery at
//! least once, order per key, retries and dead letters. A **reply** comes at most once for each time the request is
//! handled, and only while the requester waits. It is not retried: the requester's time-out covers a lost one. So a
//! reply must not be the only effect of a request that changes something, and handlers dedupe by the envelope's id.
//!
//! A refusal is a reply too: put it into the reply's data. A handler's error means retries and a dead letter, and a
//! time-out for the requester.
//!
//! # On the wire
//! Commands go to the topic exchange [`COMMAND_EXCHANGE`] with the queue's name as routing key. Replies go to
//! [`REPLY_EXCHANGE`] with the name of the requester's reply queue. Requests carry that name in the header [`REPLY_TO`]
//! and their id in [`CORRELATION_ID`], which are AMQP's own properties on RabbitMQ. Each message has a producer span
//! ([`crate::trace`]) in the trace of the [`Message`]'s headers, or else in the current one. A reply is part of its
//! request's trace.

mod commands;
#[cfg(any(test, feature = "testing"))]
pub mod contract;
mod replies;
mod requests;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::Value;

use crate::bus::{COMMAND_EXCHANGE, PublishError};
#[cfg(doc)]
use crate::bus::{CORRELATION_ID, Publisher, REPLY_EXCHANGE, REPLY_TO, Subscriber};
use crate::envelope::Envelope;
use crate::events::Outgoing;

pub use commands::Commands;
pub use replies::{ReplyOutcome, ReplyPublisher, RequestHandler, Responder};
pub use requests::{Collected, RequestError, RequestSettings, Requests};

/// The headers that a reply copies from its request.
pub const TRACE_HEADERS: [&str; 2] = ["traceparent", "tracestate"];
/// The default bound on a message, in bytes of its envelope: a consumer's default limit.
pub const DEFAULT_MAX_BYTES: usize = 256 * 1024;

/// A command or a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// The envelope's type.
    pub kind: String,
    /// A JSON object.
    pub data: Value,
    /// Messages of the same key are handled in order. Default: no order.
    pub ordering_key: Option<String>,
    /// The transport's metadata, including trace context.
    pub headers: BTreeMap<String, String>,
}

impl Message {
    /// A message without order and headers.
    pub fn new(kind: impl Into<String>, data: Value) -> Self {
        Self { kind: kind.into(), data, ordering_key: None, headers: BTreeMap::new() }
    }

    /// Sets the ordering key.
    #[must_use]
    pub fn with_key(mut self, key: impl Into<String>) -> Self {
        self.ordering_key = Some(key.into());
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    fn for_queue(self, queue: &str, now: DateTime<Utc>) -> Outgoing {
        let envelope = Envelope::new(self.kind, now, self.data);
        Outgoing {
            ordering_key: self.ordering_key.unwrap_or_else(|| envelope.id.to_string()),
            envelope,
            exchange: COMMAND_EXCHANGE.to_owned(),
            routing_key: queue.to_owned(),
            headers: self.headers,
        }
    }
}

/// Why a command was not sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// It is longer than allowed.
    #[error("the message has {bytes} bytes, {max_bytes} are allowed")]
    TooLarge {
        /// Its envelope's length.
        bytes: usize,
        /// The bound.
        max_bytes: usize,
    },
    /// The bus did not take it. [`PublishError::Unroutable`] means that the queue does not exist.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

fn check_length(event: &Outgoing, max_bytes: usize) -> Result<(), SendError> {
    let bytes = event.envelope.encode().len();
    if bytes > max_bytes { Err(SendError::TooLarge { bytes, max_bytes }) } else { Ok(()) }
}
