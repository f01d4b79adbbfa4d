//! Where answers are awaited.

use std::collections::BTreeMap;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::bus::rabbitmq::CORRELATION_ID;
use crate::bus::{Publisher, SubscribeError};
use crate::envelope::Envelope;

/// An answer as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Its data, and when it was given.
    pub envelope: Envelope,
    /// The transport's metadata, trace context among it.
    pub headers: BTreeMap<String, String>,
}

/// A queue of answers for one asker. It ends with its owner.
#[derive(Debug)]
pub struct Inbox {
    address: String,
    answers: mpsc::Receiver<(String, Answer)>,
    _receiving: AbortOnDropHandle<()>,
}

impl Inbox {
    pub(crate) fn new(
        address: String,
        answers: mpsc::Receiver<(String, Answer)>,
        receiving: AbortOnDropHandle<()>,
    ) -> Self {
        Self { address, answers, _receiving: receiving }
    }

    /// What to put into [`REPLY_TO`](crate::bus::rabbitmq::REPLY_TO).
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The next answer with its correlation id; `None` once the bus has ended.
    pub async fn next(&mut self) -> Option<(String, Answer)> {
        self.answers.recv().await
    }
}

/// A bus that can bring answers back.
#[async_trait]
pub trait Inboxes: Publisher {
    /// Opens an inbox with an address of its own, which takes up to `capacity` answers (at least 1) that were not
    /// looked at yet; what comes beyond that waits or is refused.
    ///
    /// # Errors
    /// [`SubscribeError::Unavailable`] when the bus is out of reach.
    async fn open_inbox(&self, capacity: usize) -> Result<Inbox, SubscribeError>;
}

/// The slot through which an adapter's task puts answers into an inbox.
pub(crate) struct Letterbox(pub(crate) mpsc::Sender<(String, Answer)>);

impl Letterbox {
    /// Waits for room. What is no answer (no envelope, no correlation id) is dropped: nobody could be given it. `false`
    /// when the inbox is gone.
    pub(crate) async fn put(&self, body: &[u8], headers: BTreeMap<String, String>) -> bool {
        let (Ok(envelope), Some(id)) = (Envelope::decode(body), headers.get(CORRELATION_ID)) else {
            tracing::debug!("what came to an inbox is no answer");
            return true;
        };
        let id = id.clone();
        self.0.send((id, Answer { envelope, headers })).await.is_ok()
    }
}
