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

/// Whether a reply reached the requester.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyOutcome {
    /// The bus took it.
    Sent,
    /// The requester's reply queue is gone.
    RequesterGone,
    /// The event has no reply address.
    NotRequested,
}

/// Sends replies to requests, and to events that were published for replies.
#[derive(Clone)]
pub struct ReplyPublisher {
    publisher: Arc<dyn Publisher>,
    clock: Clock,
}

impl ReplyPublisher {
    /// Replies over `publisher`.
    pub fn new(publisher: Arc<dyn Publisher>, clock: Clock) -> Self {
        Self { publisher, clock }
    }

    /// Replies to `request` with `data`, a JSON object, in the request's trace.
    ///
    /// # Errors
    /// When the bus did not take the reply. A retry is right then.
    pub async fn reply(
        &self,
        request: &Received,
        data: Value,
    ) -> Result<ReplyOutcome, PublishError> {
        let header = |name: &str| request.headers.get(name);
        let (Some(address), Some(id)) = (header(REPLY_TO), header(CORRELATION_ID)) else {
            return Ok(ReplyOutcome::NotRequested);
        };
        let mut headers = BTreeMap::from([(CORRELATION_ID.to_owned(), id.clone())]);
        for name in TRACE_HEADERS {
            headers.extend(header(name).map(|value| (name.to_owned(), value.clone())));
        }
        let reply = Outgoing {
            envelope: Envelope::new("reply", (self.clock)(), data),
            exchange: REPLY_EXCHANGE.to_owned(),
            routing_key: address.clone(),
            ordering_key: id.clone(),
            headers,
        };
        let parent = request.trace_or_its_headers();
        match trace::send_below(&parent, &*self.publisher, reply).await {
            Ok(()) => Ok(ReplyOutcome::Sent),
            Err(PublishError::Unroutable) => Ok(ReplyOutcome::RequesterGone),
            Err(error) => Err(error),
        }
    }
}

/// A service's replies to requests.
#[async_trait]
pub trait RequestHandler: Send + Sync {
    /// The reply's data, a JSON object. Called again when the request comes again: dedupe changes by the envelope's
    /// id.
    ///
    /// # Errors
    /// As with any [`Handler`]: the request is retried or dead-lettered, and the requester gets a time-out. Return a
    /// refusal for the requester as a reply, not as an error.
    async fn reply(&self, request: &Received) -> Result<Value, HandlerError>;
}

/// A [`Handler`] that sends a [`RequestHandler`]'s reply to the requester before the request is acknowledged.
pub struct Responder<A> {
    handler: A,
    replies: ReplyPublisher,
}

impl<A: RequestHandler> Responder<A> {
    /// Run it with a [`Consumer`](crate::consumer::Consumer).
    pub fn new(handler: A, replies: ReplyPublisher) -> Self {
        Self { handler, replies }
    }
}

#[async_trait]
impl<A: RequestHandler> Handler for Responder<A> {
    async fn handle(&self, request: &Received) -> Result<Outcome, HandlerError> {
        let data = self.handler.reply(request).await?;
        match self.replies.reply(request, data).await {
            Ok(ReplyOutcome::Sent | ReplyOutcome::RequesterGone) => Ok(Outcome::Applied),
            Ok(ReplyOutcome::NotRequested) => Ok(Outcome::Ignored),
            Err(PublishError::Unavailable(why)) => {
                Err(HandlerError::Unavailable(anyhow::anyhow!("the reply was not sent: {why}")))
            }
            Err(error) => Err(HandlerError::Transient(error.into())),
        }
    }
}
