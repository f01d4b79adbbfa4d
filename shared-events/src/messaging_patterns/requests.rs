//! Requests with one answer or several.

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
    Answer, CORRELATION_ID, PublishError, REPLY_TO, ReplyQueue, ReplyQueues, SubscribeError,
};
use crate::events::Outgoing;
use crate::trace;

/// The bounds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestSettings {
    /// Requests that wait for answers at the same time; more are refused. Default 1024.
    pub max_pending: usize,
    /// The longest request, in bytes of its envelope. Default [`DEFAULT_MAX_BYTES`].
    pub max_bytes: usize,
}

impl Default for RequestSettings {
    fn default() -> Self {
        Self { max_pending: 1024, max_bytes: DEFAULT_MAX_BYTES }
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// No answer in time. The request may still be handled, and its answer come too late.
    #[error("no answer in time")]
    TimedOut,
    /// Too many requests wait for answers.
    #[error("too many requests wait for answers")]
    TooManyPending,
    /// The request was not sent.
    #[error(transparent)]
    NotSent(#[from] SendError),
    /// The bus has ended.
    #[error("the bus is closed")]
    Closed,
}

/// The answers to a published event.
#[derive(Clone, Debug, PartialEq)]
pub struct Collected {
    /// In the order of arrival.
    pub answers: Vec<Answer>,
    /// As many answers arrived as were wanted; otherwise the time was over first.
    pub complete: bool,
}

/// The calls that wait for answers, by correlation id.
#[derive(Default)]
struct Pending {
    waiting: Mutex<HashMap<String, mpsc::Sender<Answer>>>,
    late: AtomicU64,
}

impl Pending {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, mpsc::Sender<Answer>>> {
        // No code under this lock can panic halfway through a change.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give(&self, id: &str, answer: Answer) {
        let taken = match self.lock().get(id) {
            Some(asker) => asker.try_send(answer).is_ok(),
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
    /// Opens the reply queue and starts to pass its answers to the waiting calls.
    ///
    /// # Errors
    /// [`SubscribeError::Unavailable`] when the bus is out of reach.
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

    /// Sends a request to a queue and waits for the first answer, at most `limit` from now, publishing included.
    ///
    /// # Errors
    /// [`RequestError`]. After a time-out it is unknown whether the request was handled.
    pub async fn request(
        &self,
        queue: &str,
        request: Message,
        limit: Duration,
    ) -> Result<Answer, RequestError> {
        let request = request.for_queue(queue, (self.clock)());
        let collected = self.ask(request, 1, limit).await?;
        collected.answers.into_iter().next().ok_or(RequestError::TimedOut)
    }

    /// Publishes an event to all bound queues and collects answers, until there are `at_most` (at least 1) of them or
    /// `limit` is over. No answer is not an error.
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

    /// Answers without a waiting call: they came after the time-out, or beyond the wanted number.
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
        let mut answers = Vec::new();
        let mut publishing = Box::pin(trace::send(&*self.bus, question));
        let mut published = false;
        let collecting = async {
            while answers.len() < wanted {
                // A bus may confirm only when the event is settled, which is after its answer.
                tokio::select! {
                    answer = coming.recv() => answers.push(answer.ok_or(RequestError::Closed)?),
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
            Ok(Err(error)) if answers.is_empty() => return Err(error),
            Ok(Err(_)) | Err(_) => {}
        }
        Ok(Collected { complete: answers.len() == wanted, answers })
    }

    fn wait_for(
        &self,
        id: String,
        wanted: usize,
    ) -> Result<(Entry<'_>, mpsc::Receiver<Answer>), RequestError> {
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
    while let Some((id, answer)) = replies.next().await {
        pending.give(&id, answer);
    }
    // Waiting requests fail: no answer can come.
    pending.lock().clear();
}
