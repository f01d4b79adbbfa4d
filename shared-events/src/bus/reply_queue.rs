//! The queue on which a requester receives its replies.

use std::collections::BTreeMap;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::{Publisher, SubscribeError};
use crate::envelope::Envelope;

/// The exchange of replies: each goes to the reply queue that its routing key names.
pub const REPLY_EXCHANGE: &str = "reply.ex";
/// In an event's headers: the name of the reply queue. RabbitMQ carries it as AMQP's own property.
pub const REPLY_TO: &str = "reply-to";
/// In an event's headers: the request that a reply belongs to. RabbitMQ carries it as AMQP's own property.
pub const CORRELATION_ID: &str = "correlation-id";

/// A reply as it arrived.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// The envelope: the reply's data and its time.
    pub envelope: Envelope,
    /// The transport's metadata, including trace context.
    pub headers: BTreeMap<String, String>,
}

/// A queue of replies for one requester. It lives as long as this value.
#[derive(Debug)]
pub struct ReplyQueue {
    address: String,
    replies: mpsc::Receiver<(String, Reply)>,
    _receiving: AbortOnDropHandle<()>,
}

impl ReplyQueue {
    pub(crate) fn new(
        address: String,
        replies: mpsc::Receiver<(String, Reply)>,
        receiving: AbortOnDropHandle<()>,
    ) -> Self {
        Self { address, replies, _receiving: receiving }
    }

    /// The value for [`REPLY_TO`].
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The next reply with its correlation id; `None` once the bus has ended.
    pub async fn next(&mut self) -> Option<(String, Reply)> {
        self.replies.recv().await
    }
}

/// A bus that can carry replies back.
#[async_trait]
pub trait ReplyQueues: Publisher {
    /// Opens a reply queue with a unique name. It holds at most `capacity` (at least 1) unread replies. Further replies
    /// wait or are refused.
    ///
    /// # Errors
    /// [`SubscribeError::Unavailable`] when the bus is unreachable.
    async fn open_reply_queue(&self, capacity: usize) -> Result<ReplyQueue, SubscribeError>;
}

/// The sending end of a reply queue, for an adapter's task.
pub(crate) struct ReplySender(pub(crate) mpsc::Sender<(String, Reply)>);

impl ReplySender {
    /// Waits for room. Drops a message that is not a reply (no envelope, no correlation id). Returns `false` when the
    /// reply queue is gone.
    pub(crate) async fn put(&self, body: &[u8], headers: BTreeMap<String, String>) -> bool {
        let (Ok(envelope), Some(id)) = (Envelope::decode(body), headers.get(CORRELATION_ID)) else {
            tracing::debug!("a message on a reply queue is not a reply");
            return true;
        };
        let id = id.clone();
        self.0.send((id, Reply { envelope, headers })).await.is_ok()
    }
}
