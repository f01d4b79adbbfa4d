//! Items in order per key, many keys at once: the ordering rule of every bus adapter and of the relay.
//!
//! No I/O and no waiting happens here. Each key has a lane. The head of a lane is handed out only when no other item of
//! the lane is out or waiting for a retry. Ready lanes are served round robin.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use tokio::time::Instant;

/// Names a lane, to return an item to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LaneKey {
    Named(Arc<str>),
    /// An item without a key is alone in its lane.
    Own(u64),
}

#[derive(Debug)]
struct Lane<T> {
    waiting: VecDeque<T>,
    /// An item of this lane is out, or its head waits for a retry.
    held: bool,
}

#[derive(Debug)]
pub(crate) struct Lanes<T> {
    lanes: HashMap<LaneKey, Lane<T>>,
    ready: VecDeque<LaneKey>,
    /// Lanes whose head waits for its time. The number keeps equal times distinct.
    delayed: BTreeMap<(Instant, u64), LaneKey>,
    counter: u64,
    waiting: usize,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self {
            lanes: HashMap::new(),
            ready: VecDeque::new(),
            delayed: BTreeMap::new(),
            counter: 0,
            waiting: 0,
        }
    }
}

impl<T> Lanes<T> {
    /// Puts an item at the end of its lane.
    pub(crate) fn push(&mut self, key: Option<&str>, item: T) {
        let key = match key {
            Some(key) => LaneKey::Named(key.into()),
            None => LaneKey::Own(self.count()),
        };
        let lane = self
            .lanes
            .entry(key.clone())
            .or_insert_with(|| Lane { waiting: VecDeque::new(), held: false });
        let was_idle = !lane.held && lane.waiting.is_empty();
        lane.waiting.push_back(item);
        self.waiting += 1;
        if was_idle {
            self.ready.push_back(key);
        }
    }

    /// Hands out the next item. Its lane is held until one of `done`, `back` or `again`.
    pub(crate) fn take(&mut self, now: Instant) -> Option<(LaneKey, T)> {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let key = entry.remove();
            self.release(&key, true);
        }
        let key = self.ready.pop_front()?;
        let lane = self.lanes.get_mut(&key)?;
        lane.held = true;
        let item = lane.waiting.pop_front()?;
        self.waiting -= 1;
        Some((key, item))
    }

    /// The item is finished, and the next one of its lane may go.
    pub(crate) fn done(&mut self, key: &LaneKey) {
        self.release(key, false);
    }

    /// The item returns and goes out again as soon as possible.
    pub(crate) fn back(&mut self, key: &LaneKey, item: T) {
        self.put_first(key, item);
        self.release(key, true);
    }

    /// The item returns, and waits with its lane until `at`.
    pub(crate) fn again(&mut self, key: &LaneKey, item: T, at: Instant) {
        self.put_first(key, item);
        let number = self.count();
        self.delayed.insert((at, number), key.clone());
    }

    /// Removes a lane whose head is out, and returns the items that wait behind the head.
    pub(crate) fn drop_lane(&mut self, key: &LaneKey) -> VecDeque<T> {
        let waiting = self.lanes.remove(key).map(|lane| lane.waiting).unwrap_or_default();
        self.waiting -= waiting.len();
        waiting
    }

    /// When the next delayed lane becomes ready.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.delayed.first_key_value().map(|((at, _), _)| *at)
    }

    /// How many items wait, without those that are out.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    fn put_first(&mut self, key: &LaneKey, item: T) {
        // A held lane exists, except after `clear`.
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.waiting.push_front(item);
            self.waiting += 1;
        }
    }

    fn release(&mut self, key: &LaneKey, first: bool) {
        let Some(lane) = self.lanes.get_mut(key) else {
            return;
        };
        lane.held = false;
        if lane.waiting.is_empty() {
            self.lanes.remove(key);
        } else if first {
            self.ready.push_front(key.clone());
        } else {
            self.ready.push_back(key.clone());
        }
    }

    fn count(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[derive(Clone, Debug)]
    enum Step {
        Push(u8),
        Take,
        Done(usize),
        Back(usize),
        Again(usize, u8),
        Pass(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_u8..4).prop_map(Step::Push),
            4 => Just(Step::Take),
            3 => any::<usize>().prop_map(Step::Done),
            1 => any::<usize>().prop_map(Step::Back),
            1 => (any::<usize>(), 0_u8..20).prop_map(|(i, ms)| Step::Again(i, ms)),
            1 => (0_u8..20).prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// Each key's items finish in the order in which they came, one out at a time, and in the end all of them have
        /// finished.
        #[test]
        fn order_per_key_holds_and_nothing_is_lost(steps in proptest::collection::vec(step(), 0..200)) {
            let mut now = Instant::now();
            let mut lanes: Lanes<(u8, u32)> = Lanes::default();
            let mut out: Vec<(LaneKey, (u8, u32))> = Vec::new();
            let mut pushed = [0_u32; 4];
            let mut finished: Vec<Vec<u32>> = vec![Vec::new(); 4];
            for step in steps {
                match step {
                    Step::Push(key) => {
                        let item = (key, pushed[usize::from(key)]);
                        pushed[usize::from(key)] += 1;
                        lanes.push(Some(&key.to_string()), item);
                    }
                    Step::Take => {
                        if let Some((key, item)) = lanes.take(now) {
                            prop_assert!(out.iter().all(|(other, _)| *other != key));
                            out.push((key, item));
                        }
                    }
                    Step::Pass(ms) => now += Duration::from_millis(ms.into()),
                    Step::Done(i) | Step::Back(i) | Step::Again(i, _) if out.is_empty() => { let _ = i; }
                    Step::Done(i) => {
                        let (key, (k, n)) = out.swap_remove(i % out.len());
                        finished[usize::from(k)].push(n);
                        lanes.done(&key);
                    }
                    Step::Back(i) => {
                        let (key, item) = out.swap_remove(i % out.len());
                        lanes.back(&key, item);
                    }
                    Step::Again(i, ms) => {
                        let (key, item) = out.swap_remove(i % out.len());
                        lanes.again(&key, item, now + Duration::from_millis(ms.into()));
                    }
                }
            }
            for (key, (k, n)) in out.drain(..) {
                finished[usize::from(k)].push(n);
                lanes.done(&key);
            }
            now += Duration::from_secs(1);
            while let Some((key, (k, n))) = lanes.take(now) {
                finished[usize::from(k)].push(n);
                lanes.done(&key);
            }
            for (k, done) in finished.iter().enumerate() {
                prop_assert_eq!(done, &(0..pushed[k]).collect::<Vec<_>>());
            }
            prop_assert_eq!(lanes.waiting(), 0);
            prop_assert!(lanes.lanes.is_empty() && lanes.next_due().is_none());
        }
    }

    #[test]
    fn items_without_a_key_do_not_wait_for_each_other() {
        let mut lanes = Lanes::default();
        lanes.push(None, 1);
        lanes.push(None, 2);
        let now = Instant::now();
        assert_eq!(lanes.take(now).map(|(_, item)| item), Some(1));
        assert_eq!(lanes.take(now).map(|(_, item)| item), Some(2));
    }
}
