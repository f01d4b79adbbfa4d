//! Work in batches.
//!
//! Items that arrive while a batch is in progress make the next one: alone, an item goes at once; under load, a hundred
//! share one commit or one round trip. Nothing waits for a batch to fill.

use std::any::Any;
use std::iter::repeat_with;
use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;
use tokio::sync::{mpsc, oneshot, watch};
use tourin_chassis::metrics::count_panic;

use crate::app::ports::PortError;

/// Maximum number of items that wait for a batch. Further senders wait.
const QUEUE: usize = 1_024;

/// The work on a batch.
pub(crate) trait Work: Send + Sync + 'static {
    /// An item of a batch.
    type Item: Send + Sync + 'static;
    /// The result of an item.
    type Output: Send + 'static;
    /// The name in errors.
    const NAME: &'static str;
    /// The most items in a batch.
    const MAX: usize;

    /// Does the work. Returns one result per item, in their order.
    fn run(
        &self,
        batch: &[Self::Item],
    ) -> impl Future<Output = Vec<Result<Self::Output, PortError>>> + Send;
}

struct Job<W: Work> {
    item: W::Item,
    reply: oneshot::Sender<Result<W::Output, PortError>>,
}

/// A handle on the task that does the work. The task ends after the last item when all handles are dropped.
/// If it panics, every item fails, and [`Batcher::failure`] has the reason.
pub(crate) struct Batcher<W: Work> {
    jobs: mpsc::Sender<Job<W>>,
    failure: Failure,
}

impl<W: Work> Clone for Batcher<W> {
    fn clone(&self) -> Self {
        Self { jobs: self.jobs.clone(), failure: self.failure.clone() }
    }
}

impl<W: Work> Batcher<W> {
    /// Starts the task. Must be called inside a tokio runtime.
    pub(crate) fn start(work: W) -> Self {
        let (sender, jobs) = mpsc::channel(QUEUE);
        let (failed, failure) = Failure::new();
        tokio::spawn(async move {
            if let Err(panic) = AssertUnwindSafe(run(work, jobs)).catch_unwind().await {
                count_panic();
                let reason = format!("{} panicked: {}", W::NAME, message(&*panic));
                tracing::error!(reason, "nothing is written any more");
                failed.send_replace(Some(reason));
            }
        });
        Self { jobs: sender, failure }
    }

    /// Reports a panic of the task.
    pub(crate) fn failure(&self) -> Failure {
        self.failure.clone()
    }

    /// Does the work on an item, and returns once it is done. An item whose caller was dropped before its
    /// batch begins is left out.
    ///
    /// # Errors
    /// The error of the work, or that the task has ended.
    pub(crate) async fn submit(&self, item: W::Item) -> Result<W::Output, PortError> {
        let (reply, done) = oneshot::channel();
        if self.jobs.send(Job { item, reply }).await.is_ok()
            && let Ok(result) = done.await
        {
            return result;
        }
        let reason = self.failure().failed().await;
        Err(PortError::unavailable(anyhow::anyhow!("{} has stopped: {reason}", W::NAME)))
    }
}

async fn run<W: Work>(work: W, mut jobs: mpsc::Receiver<Job<W>>) {
    let mut batch = Vec::with_capacity(W::MAX);
    while jobs.recv_many(&mut batch, W::MAX).await > 0 {
        batch.retain(|job| !job.reply.is_closed());
        let (items, replies): (Vec<_>, Vec<_>) =
            batch.drain(..).map(|job| (job.item, job.reply)).unzip();
        if items.is_empty() {
            continue;
        }
        let left_out = || Err(PortError::failed(anyhow::anyhow!("{} left an item out", W::NAME)));
        let results = work.run(&items).await.into_iter().chain(repeat_with(left_out));
        for (reply, result) in replies.into_iter().zip(results) {
            if reply.send(result).is_err() {
                tracing::trace!(work = W::NAME, "the caller did not wait for the result");
            }
        }
    }
}

/// The message of a panic.
fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// Reports that a store has stopped for good, with the reason. Only a restart of the process helps.
#[derive(Clone, Debug)]
pub struct Failure(Option<watch::Receiver<Option<String>>>);

impl Failure {
    /// A failure that the owner of the sender may report.
    pub fn new() -> (watch::Sender<Option<String>>, Self) {
        let (sender, receiver) = watch::channel(None);
        (sender, Self(Some(receiver)))
    }

    /// Never fails: for stores on servers, which recover.
    pub fn never() -> Self {
        Self(None)
    }

    /// Waits for the failure and returns its reason. Safe to drop and call again.
    pub async fn failed(&mut self) -> String {
        let Some(receiver) = &mut self.0 else { return std::future::pending().await };
        match receiver.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_gone) => "it was stopped from outside".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

    /// Doubles numbers, and records the sizes of batches.
    struct Double {
        batches: std::sync::Arc<Mutex<Vec<usize>>>,
        may_go: std::sync::Arc<Semaphore>,
    }

    impl Work for Double {
        type Item = u32;
        type Output = u32;
        const NAME: &'static str = "the doubler";
        const MAX: usize = 4;

        async fn run(&self, batch: &[u32]) -> Vec<Result<u32, PortError>> {
            self.may_go.acquire().await.expect("it is never closed").forget();
            self.batches.lock().unwrap().push(batch.len());
            batch.iter().filter(|item| **item != 13).map(|item| Ok(item * 2)).collect()
        }
    }

    #[tokio::test]
    async fn items_that_arrive_during_a_batch_form_the_next_one_in_order() {
        let (batches, may_go) = (std::sync::Arc::default(), std::sync::Arc::new(Semaphore::new(0)));
        let work = Double { batches: std::sync::Arc::clone(&batches), may_go: may_go.clone() };
        let batcher = Batcher::start(work);
        let first = tokio::spawn({
            let batcher = batcher.clone();
            async move { batcher.submit(0).await }
        });
        while batcher.jobs.capacity() != QUEUE || may_go.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let rest = join_all((1..=5).map(|item| batcher.submit(item)));
        let letting_go = async { may_go.add_permits(8) };
        let (rest, ()) = tokio::join!(rest, letting_go);
        assert_eq!(first.await.unwrap().unwrap(), 0);
        assert_eq!(rest.into_iter().map(Result::unwrap).collect::<Vec<_>>(), [2, 4, 6, 8, 10]);
        let batches = batches.lock().unwrap().clone();
        assert_eq!(batches.iter().sum::<usize>(), 6);
        assert!(batches.len() < 6 && batches.iter().all(|size| *size <= 4), "{batches:?}");
    }

    #[tokio::test]
    async fn an_item_that_the_work_leaves_out_fails() {
        let work = Double {
            batches: std::sync::Arc::default(),
            may_go: std::sync::Arc::new(Semaphore::new(1)),
        };
        let error = Batcher::start(work).submit(13).await.unwrap_err();
        assert!(error.to_string().contains("left an item out"), "{error}");
    }
}
