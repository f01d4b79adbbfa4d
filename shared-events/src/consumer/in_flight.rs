//! The events that a consumer has in hand.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};

/// The timestamps of the events in hand, which show how far a consumer is behind. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct InHandTimes(Arc<Mutex<BTreeMap<DateTime<Utc>, u32>>>);

impl InHandTimes {
    /// The time of the oldest event in hand; `None` when there is none.
    pub fn oldest(&self) -> Option<DateTime<Utc>> {
        self.lock().first_key_value().map(|(at, _)| *at)
    }

    /// The event of this time is in hand as long as the returned value lives.
    pub(super) fn take(&self, at: DateTime<Utc>) -> InHandTime {
        *self.lock().entry(at).or_default() += 1;
        InHandTime { times: self.clone(), at }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DateTime<Utc>, u32>> {
        // No code under this lock can panic halfway through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`InHandTimes::take`].
#[derive(Debug)]
pub(super) struct InHandTime {
    times: InHandTimes,
    at: DateTime<Utc>,
}

impl Drop for InHandTime {
    fn drop(&mut self) {
        let mut times = self.times.lock();
        if let Some(events) = times.get_mut(&self.at) {
            *events -= 1;
            if *events == 0 {
                times.remove(&self.at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_in_hand_is_known_until_it_is_let_go() {
        let in_hand = InHandTimes::default();
        let at = |seconds| DateTime::from_timestamp(seconds, 0).unwrap();
        let [first, again, later] = [5, 5, 9].map(|s| in_hand.take(at(s)));
        drop(first);
        assert_eq!(in_hand.oldest(), Some(at(5)));
        drop(again);
        assert_eq!(in_hand.oldest(), Some(at(9)));
        drop(later);
        assert_eq!(in_hand.oldest(), None);
    }
}
