//! Requests with one reply or several.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

use super::{DEFAULT_MAX_BYTES, Message, SendError, check_length};
use crate::Clock;
use crate::bus::{
    CORRELATION_ID, PublishError, REPLY_TO, Reply, ReplyQueue, ReplyQueues, SubscribeError,
};
use crate::events::Outgoing;
use crate::trace;

/// The bounds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestSettings {
    /// Requests that wait for replies at the same time; more are refused. Default 1024.
    pub max_pending: usize,
    /// The longest request, in bytes of its envelope. Default [`DEFAULT_MAX_BYTES`].
    pub max_bytes: usize,
}

impl Default for RequestSettings {
    fn default() -> Self {
        Self { max_pending: 1024, max_bytes: DEFAULT_MAX_BYTES }
    }
}

/// Why there is no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No reply in time. The request may still be handled, and its reply come too late.
    #[error("no reply in time")]
    TimedOut,
    /// Too many requests wait for replies.
    #[error("too many requests wait for replies")]
    TooManyPending,
    /// The request was not sent.
    #[error(transparent)]
    NotSent(#[from] SendError),
    /// The bus has ended.
    #[error("the bus is closed")]
    Closed,
}

/// The replies to a published event.
#[derive(Clone, Debug, PartialEq)]
pub struct Collected {
    /// In the order of arrival.
    pub replies: Vec<Reply>,
    /// As many replies arrived as were wanted; otherwise the time was over first.
    pub complete: bool,
}

/// The calls that wait for replies, by correlation id.
#[derive(Default)]
struct Pending {
    waiting: Mutex<HashMap<String, mpsc::Sender<Reply>>>,
    late: AtomicU64,
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, mpsc::Sender<Reply>>> {
        // No code under this lock can panic halfway through a change.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deliver(&self, id: &str, reply: Reply) {
        let taken = match self.lock().get(id) {
            Some(requester) => requester.try_send(reply).is_ok(),
            None => false,
        };
        if !taken {
            self.late.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Sends requests over the bus. One value serves many requests at once. It has one reply queue, which ends with it.
pub struct Requests {
    bus: Arc<dyn ReplyQueues>,
    clock: Clock,
    settings: RequestSettings,
    address: String,
    pending: Arc<Pending>,
    _sorting: AbortOnDropHandle<()>,
}

impl Requests {
    /// Opens the reply queue and starts to pass its replies to the waiting calls.
    ///
    /// # Errors
    /// [`SubscribeError::Unavailable`] when the bus is unreachable.
    pub async fn open(
        bus: Arc<dyn ReplyQueues>,
        clock: Clock,
        settings: RequestSettings,
    ) -> Result<Self, SubscribeError> {
        let replies = bus.open_reply_queue(settings.max_pending.max(1)).await?;
        let (address, pending) = (replies.address().to_owned(), Arc::<Pending>::default());
        let sorting = AbortOnDropHandle::new(tokio::spawn(sort(replies, pending.clone())));
        Ok(Self { bus, clock, settings, address, pending, _sorting: sorting })
    }

    /// Sends a request to a queue and waits for the first reply, at most `limit` from now, publishing included.
    ///
    /// # Errors
    /// [`RequestError`]. After a time-out it is unknown whether the request was handled.
    pub async fn request(
        &self,
        queue: &str,
        request: Message,
        limit: Duration,
    ) -> Result<Reply, RequestError> {
        let request = request.for_queue(queue, (self.clock)());
        let collected = self.ask(request, 1, limit).await?;
        collected.replies.into_iter().next().ok_or(RequestError::TimedOut)
    }

    /// Publishes an event to all bound queues and collects replies, until there are `at_most` (at least 1) of them or
    /// `limit` is over. No reply is not an error.
    ///
    /// # Errors
    /// As [`Requests::request`], time-outs excepted.
    pub async fn publish(
        &self,
        event: Outgoing,
        at_most: usize,
        limit: Duration,
    ) -> Result<Collected, RequestError> {
        self.ask(event, at_most.max(1), limit).await
    }

    /// Replies without a waiting call: they came after the time-out, or beyond the wanted number.
    pub fn late(&self) -> u64 {
        self.pending.late.load(Ordering::Relaxed)
    }

    async fn ask(
        &self,
        mut question: Outgoing,
        wanted: usize,
        limit: Duration,
    ) -> Result<Collected, RequestError> {
        let deadline = Instant::now() + limit;
        check_length(&question, self.settings.max_bytes)?;
        let id = question.envelope.id.to_string();
        question.headers.insert(REPLY_TO.to_owned(), self.address.clone());
        question.headers.insert(CORRELATION_ID.to_owned(), id.clone());
        let (_entry, mut coming) = self.wait_for(id, wanted)?;
        let mut replies = Vec::new();
        let mut publishing = Box::pin(trace::send(&*self.bus, question));
        let mut published = false;
        let collecting = async {
            while replies.len() < wanted {
                // A bus may confirm only when the event is settled, which is after its reply.
                tokio::select! {
                    reply = coming.recv() => replies.push(reply.ok_or(RequestError::Closed)?),
                    result = &mut publishing, if !published => {
                        published = true;
                        result.map_err(failed)?;
                    }
                }
            }
            Ok(())
        };
        match timeout_at(deadline, collecting).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) if replies.is_empty() => return Err(error),
            Ok(Err(_)) | Err(_) => {}
        }
        Ok(Collected { complete: replies.len() == wanted, replies })
    }

    fn wait_for(
        &self,
        id: String,
        wanted: usize,
    ) -> Result<(Entry<'_>, mpsc::Receiver<Reply>), RequestError> {
        let (sender, receiver) = mpsc::channel(wanted);
        let mut waiting = self.pending.lock();
        if waiting.len() >= self.settings.max_pending {
            return Err(RequestError::TooManyPending);
        }
        waiting.insert(id.clone(), sender);
        Ok((Entry { pending: &self.pending, id }, receiver))
    }
}

fn failed(error: PublishError) -> RequestError {
    RequestError::NotSent(SendError::Publish(error))
}

/// A waiting call; ends with its owner, also when that is dropped.
struct Entry<'a> {
    pending: &'a Pending,
    id: String,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.pending.lock().remove(&self.id);
    }
}

async fn sort(mut replies: ReplyQueue, pending: Arc<Pending>) {
    while let Some((id, reply)) = replies.next().await {
        pending.deliver(&id, reply);
    }
    // Waiting requests fail: no reply can come.
    pending.lock().clear();
}
