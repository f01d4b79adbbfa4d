//! State by name that is made at first use, such as a service's counters or a route's limiter.
//!
//! Routes can change while the gateway runs, so no set of names is known at the start.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;

use arc_swap::ArcSwap;

/// Values by name. Reading takes no lock; adding copies the map, which is small and seldom changes.
#[derive(Debug)]
pub struct Keyed<V>(ArcSwap<HashMap<Arc<str>, Arc<V>>>);

impl<V> Default for Keyed<V> {
    fn default() -> Self {
        Self(ArcSwap::default())
    }
}

impl<V> Keyed<V> {
    /// The value of `name`, which `make` makes if there is none.
    pub fn get_or_insert_with(&self, name: &str, make: impl FnOnce() -> V) -> Arc<V> {
        let made: Result<_, Infallible> = self.get_or_try_insert_with(name, || Ok(make()));
        match made {
            Ok(value) => value,
        }
    }

    /// [`Keyed::get_or_insert_with`], for a value that may not be made.
    ///
    /// # Errors
    /// That of `make`; then nothing is kept.
    pub fn get_or_try_insert_with<E>(
        &self,
        name: &str,
        make: impl FnOnce() -> Result<V, E>,
    ) -> Result<Arc<V>, E> {
        if let Some(value) = self.get(name) {
            return Ok(value);
        }
        let made = Arc::new(make()?);
        self.0.rcu(|values| {
            let mut values = HashMap::clone(values);
            values.entry(name.into()).or_insert_with(|| Arc::clone(&made));
            values
        });
        // Another thread may have been first.
        Ok(self.get(name).unwrap_or(made))
    }

    /// Gives `name` another value, which is returned.
    pub fn insert(&self, name: &str, value: V) -> Arc<V> {
        let value = Arc::new(value);
        self.0.rcu(|values| {
            let mut values = HashMap::clone(values);
            values.insert(name.into(), Arc::clone(&value));
            values
        });
        value
    }

    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<Arc<V>> {
        self.0.load().get(name).cloned()
    }

    /// All values.
    pub fn all(&self) -> Arc<HashMap<Arc<str>, Arc<V>>> {
        self.0.load_full()
    }

    /// Forgets the values of other names.
    pub fn retain(&self, keep: impl Fn(&str, &V) -> bool) {
        self.0.rcu(|values| {
            let kept = values.iter().filter(|(name, value)| keep(name, value));
            kept.map(|(name, value)| (Arc::clone(name), Arc::clone(value)))
                .collect::<HashMap<_, _>>()
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_value_is_made_once_and_kept() {
        let counts = Keyed::<AtomicUsize>::default();
        std::thread::scope(|scope| {
            for name in ["a", "b"].repeat(4) {
                let counts = &counts;
                scope.spawn(move || {
                    for _ in 0..100 {
                        counts
                            .get_or_insert_with(name, AtomicUsize::default)
                            .fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        for name in ["a", "b"] {
            assert_eq!(counts.get(name).unwrap().load(Ordering::Relaxed), 400, "{name}");
        }
        counts.retain(|name, _| name == "a");
        assert!(counts.get("b").is_none());
        assert_eq!(counts.all().len(), 1);
        assert_eq!(counts.get_or_try_insert_with("c", || Err("no")).unwrap_err(), "no");
        assert!(counts.get("c").is_none());
    }
}
