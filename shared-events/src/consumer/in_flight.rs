//! The events that a consumer has in flight.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};

/// The timestamps of the events in flight, which show how far a consumer is behind. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct InFlightTimes(Arc<Mutex<BTreeMap<DateTime<Utc>, u32>>>);

impl InFlightTimes {
    /// The time of the oldest event in flight; `None` when there is none.
    pub fn oldest(&self) -> Option<DateTime<Utc>> {
        self.lock().first_key_value().map(|(at, _)| *at)
    }

    /// The event of this time is in flight as long as the returned value lives.
    pub(super) fn take(&self, at: DateTime<Utc>) -> InFlightTime {
        *self.lock().entry(at).or_default() += 1;
        InFlightTime { times: self.clone(), at }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DateTime<Utc>, u32>> {
        // No code under this lock can panic halfway through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`InFlightTimes::take`].
#[derive(Debug)]
pub(super) struct InFlightTime {
    times: InFlightTimes,
    at: DateTime<Utc>,
}

impl Drop for InFlightTime {
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
    fn the_oldest_in_flight_is_known_until_it_is_released() {
        let in_flight = InFlightTimes::default();
        let at = |seconds| DateTime::from_timestamp(seconds, 0).unwrap();
        let [first, again, later] = [5, 5, 9].map(|s| in_flight.take(at(s)));
        drop(first);
        assert_eq!(in_flight.oldest(), Some(at(5)));
        drop(again);
        assert_eq!(in_flight.oldest(), Some(at(9)));
        drop(later);
        assert_eq!(in_flight.oldest(), None);
    }
}
