//! Replies to requests.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;

use super::TRACE_HEADERS;
use crate::Clock;
use crate::bus::{CORRELATION_ID, PublishError, Publisher, REPLY_EXCHANGE, REPLY_TO};
use crate::consumer::{Handler, HandlerError, Outcome, Received};
use crate::envelope::Envelope;
use crate::events::Outgoing;
use crate::trace;

/// Whether an answer reached the requester.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The bus took it.
    Sent,
    /// The requester's reply queue is gone.
    Gone,
    /// The event has no reply address.
    NotAsked,
}

/// Sends answers to requests, and to events that were published for answers.
#[derive(Clone)]
pub struct Answers {
    publisher: Arc<dyn Publisher>,
    clock: Clock,
}

impl Answers {
    /// Answers over `publisher`.
    pub fn new(publisher: Arc<dyn Publisher>, clock: Clock) -> Self {
        Self { publisher, clock }
    }

    /// Answers `request` with `data`, a JSON object, in the request's trace.
    ///
    /// # Errors
    /// When the bus did not take the answer. A retry is right then.
    pub async fn give(&self, request: &Received, data: Value) -> Result<Heard, PublishError> {
        let header = |name: &str| request.headers.get(name);
        let (Some(address), Some(id)) = (header(REPLY_TO), header(CORRELATION_ID)) else {
            return Ok(Heard::NotAsked);
        };
        let mut headers = BTreeMap::from([(CORRELATION_ID.to_owned(), id.clone())]);
        for name in TRACE_HEADERS {
            headers.extend(header(name).map(|value| (name.to_owned(), value.clone())));
        }
        let answer = Outgoing {
            envelope: Envelope::new("reply", (self.clock)(), data),
            exchange: REPLY_EXCHANGE.to_owned(),
            routing_key: address.clone(),
            ordering_key: id.clone(),
            headers,
        };
        let parent = request.trace_or_its_headers();
        match trace::send_below(&parent, &*self.publisher, answer).await {
            Ok(()) => Ok(Heard::Sent),
            Err(PublishError::Unroutable) => Ok(Heard::Gone),
            Err(error) => Err(error),
        }
    }
}

/// A service's answers to requests.
#[async_trait]
pub trait Answerer: Send + Sync {
    /// The answer's data, a JSON object. Called again when the request comes again: dedupe changes by the envelope's
    /// id.
    ///
    /// # Errors
    /// As with any [`Handler`]: the request is retried or dead-lettered, and the requester gets a time-out. Return a
    /// refusal for the requester as an answer, not as an error.
    async fn answer(&self, request: &Received) -> Result<Value, HandlerError>;
}

/// A [`Handler`] that sends an [`Answerer`]'s answer to the requester before the request is acknowledged.
pub struct Responder<A> {
    answerer: A,
    answers: Answers,
}

impl<A: Answerer> Responder<A> {
    /// Run it with a [`Consumer`](crate::consumer::Consumer).
    pub fn new(answerer: A, answers: Answers) -> Self {
        Self { answerer, answers }
    }
}

#[async_trait]
impl<A: Answerer> Handler for Responder<A> {
    async fn handle(&self, request: &Received) -> Result<Outcome, HandlerError> {
        let data = self.answerer.answer(request).await?;
        match self.answers.give(request, data).await {
            Ok(Heard::Sent | Heard::Gone) => Ok(Outcome::Applied),
            Ok(Heard::NotAsked) => Ok(Outcome::Ignored),
            Err(PublishError::Unavailable(why)) => {
                Err(HandlerError::Unavailable(anyhow::anyhow!("the answer was not sent: {why}")))
            }
            Err(error) => Err(HandlerError::Transient(error.into())),
        }
    }
}
