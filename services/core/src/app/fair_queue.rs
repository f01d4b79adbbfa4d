//! A semaphore that serves clients round robin.
//!
//! A request waits behind the first request of every other client, not behind all that another client
//! has sent. Urgent requests go before the rest. A bounded number of requests of one client wait.

use std::collections::{HashMap, VecDeque};
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Most requests of one client that wait at once: so many urgent ones, and as many others.
pub const MAX_WAITING_PER_CLIENT: usize = 128;

/// Which client a request is of, and whether it goes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requester {
    client: String,
    urgent: bool,
}

impl Requester {
    /// Its request goes before those that are not urgent.
    pub fn urgent(client: impl Display) -> Self {
        Self { client: client.to_string(), urgent: true }
    }

    /// Its request goes behind urgent ones.
    pub fn not_urgent(client: impl Display) -> Self {
        Self { client: client.to_string(), urgent: false }
    }
}

/// Too many requests of the client wait already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyWaiting;

/// The permits, and the requests that wait for one. Clones share them.
#[derive(Clone, Debug)]
pub struct FairQueue(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    urgent: Line,
    rest: Line,
}

/// Requests that wait, by client.
#[derive(Debug, Default)]
struct Line {
    waiting: HashMap<String, VecDeque<oneshot::Sender<Permit>>>,
    /// The clients that wait, the next one first.
    clients: VecDeque<String>,
}

impl Line {
    fn push(&mut self, client: &str, next: oneshot::Sender<Permit>) -> Result<(), TooManyWaiting> {
        let Some(of_client) = self.waiting.get_mut(client) else {
            self.waiting.insert(client.to_owned(), VecDeque::from([next]));
            self.clients.push_back(client.to_owned());
            return Ok(());
        };
        if of_client.len() >= MAX_WAITING_PER_CLIENT {
            of_client.retain(|waiting| !waiting.is_closed());
        }
        if of_client.len() >= MAX_WAITING_PER_CLIENT {
            return Err(TooManyWaiting);
        }
        of_client.push_back(next);
        Ok(())
    }

    /// The first request of the next client, which then goes behind the others.
    fn pop(&mut self) -> Option<oneshot::Sender<Permit>> {
        loop {
            let client = self.clients.pop_front()?;
            let Some(of_client) = self.waiting.get_mut(&client) else { continue };
            let next = of_client.pop_front();
            if of_client.is_empty() {
                self.waiting.remove(&client);
            } else {
                self.clients.push_back(client);
            }
            if next.is_some() {
                return next;
            }
        }
    }
}

impl FairQueue {
    /// At least one permit.
    pub fn new(permits: usize) -> Self {
        let (urgent, rest) = Default::default();
        Self(Arc::new(Mutex::new(State { free: permits.max(1), urgent, rest })))
    }

    /// Waits for a permit. Drop the future to stop waiting.
    ///
    /// # Errors
    /// [`TooManyWaiting`].
    pub async fn acquire(&self, requester: &Requester) -> Result<Permit, TooManyWaiting> {
        let receiver = {
            let mut state = self.lock();
            if state.free > 0 {
                state.free -= 1;
                return Ok(Permit(Some(self.clone())));
            }
            let (sender, receiver) = oneshot::channel();
            let line = if requester.urgent { &mut state.urgent } else { &mut state.rest };
            line.push(&requester.client, sender)?;
            receiver
        };
        // A waiting sender is only dropped with the queue, which this future holds.
        receiver.await.map_err(|_| TooManyWaiting)
    }

    /// The next request that gets the permit; without one the permit is free.
    fn next(&self) -> Option<oneshot::Sender<Permit>> {
        let mut state = self.lock();
        let next = state.urgent.pop().or_else(|| state.rest.pop());
        if next.is_none() {
            state.free += 1;
        }
        next
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A permit, passed on to the next request when it is dropped.
#[derive(Debug)]
pub struct Permit(Option<FairQueue>);

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(queue) = self.0.take() else { return };
        while let Some(next) = queue.next() {
            match next.send(Self(Some(queue.clone()))) {
                Ok(()) => return,
                // That request no longer waits, so the permit is still here. Not dropped as one: that
                // would recurse for each such request.
                Err(mut unwanted) => drop(unwanted.0.take()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requester(client: &str, urgent: bool) -> Requester {
        if urgent { Requester::urgent(client) } else { Requester::not_urgent(client) }
    }

    /// Waits for a permit in a task, and notes in which order the clients got one.
    fn wait(
        queue: &FairQueue,
        served: &Arc<Mutex<Vec<String>>>,
        requester: Requester,
    ) -> tokio::task::JoinHandle<()> {
        let (queue, served) = (queue.clone(), Arc::clone(served));
        tokio::spawn(async move {
            let permit = queue.acquire(&requester).await.unwrap();
            served.lock().unwrap().push(requester.client);
            drop(permit);
        })
    }

    #[tokio::test]
    async fn clients_are_served_round_robin_and_urgent_requests_first() {
        let queue = FairQueue::new(1);
        let served = Arc::default();
        let first = queue.acquire(&requester("flood", true)).await.unwrap();
        let mut tasks = vec![wait(&queue, &served, requester("newcomer", false))];
        for _ in 0..3 {
            tasks.push(wait(&queue, &served, requester("flood", true)));
        }
        tasks.push(wait(&queue, &served, requester("member", true)));
        tokio::task::yield_now().await;
        drop(first);
        for task in tasks {
            task.await.unwrap();
        }
        let order = served.lock().unwrap().clone();
        assert_eq!(order, ["flood", "member", "flood", "flood", "newcomer"]);
        assert_eq!(queue.lock().free, 1);
    }

    #[tokio::test]
    async fn a_request_that_stopped_waiting_loses_no_permit() {
        let queue = FairQueue::new(1);
        let served = Arc::default();
        let first = queue.acquire(&requester("a", true)).await.unwrap();
        let gone = wait(&queue, &served, requester("b", true));
        let stays = wait(&queue, &served, requester("c", true));
        tokio::task::yield_now().await;
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        drop(first);
        stays.await.unwrap();
        assert_eq!(*served.lock().unwrap(), ["c"]);
        assert_eq!(queue.lock().free, 1);
    }

    #[tokio::test]
    async fn the_waiting_requests_of_one_client_are_bounded() {
        let queue = FairQueue::new(1);
        let served = Arc::default();
        let first = queue.acquire(&requester("flood", true)).await.unwrap();
        let waiting: Vec<_> = (0..MAX_WAITING_PER_CLIENT)
            .map(|_| wait(&queue, &served, requester("flood", true)))
            .collect();
        let waits = || queue.lock().urgent.waiting.get("flood").map_or(0, VecDeque::len);
        while waits() < MAX_WAITING_PER_CLIENT {
            tokio::task::yield_now().await;
        }
        assert_eq!(queue.acquire(&requester("flood", true)).await.unwrap_err(), TooManyWaiting);
        let member = wait(&queue, &served, requester("member", true));
        tokio::task::yield_now().await;
        drop(first);
        member.await.unwrap();
        for task in waiting {
            task.await.unwrap();
        }
    }
}
