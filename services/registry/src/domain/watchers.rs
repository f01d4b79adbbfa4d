//! Who watches, and how far each has got.

use std::collections::BTreeMap;

/// Bounds of [`Watchers`].
#[derive(Clone, Copy, Debug)]
pub struct WatcherLimits {
    /// Most watchers with a name, which takes the secret.
    pub named: usize,
    /// Most watchers without one. A bound of their own: strangers cannot take the gateways' places.
    pub anonymous: usize,
}

/// There are as many watchers of this kind as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are as many watchers as there may be ({limit})")]
pub struct TooManyWatchers {
    limit: usize,
}

/// One open watch. Given back with [`Watchers::leave`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    name: Option<String>,
    number: u64,
}

/// Who watches, and how far each has got.
///
/// Only named watchers acknowledge, and only they are waited for. A watcher that let a wait run out
/// is not waited for again until it has caught up, so that one that hangs delays one departure
/// and not all of them.
#[derive(Debug)]
pub struct Watchers {
    named: BTreeMap<String, Watcher>,
    anonymous: usize,
    limits: WatcherLimits,
    sessions: u64,
}

#[derive(Debug)]
struct Watcher {
    session: u64,
    acknowledged: u64,
    /// The version that it was waited for in vain.
    behind: Option<u64>,
}

impl Watchers {
    /// Nobody yet.
    pub fn new(limits: WatcherLimits) -> Self {
        Self { named: BTreeMap::new(), anonymous: 0, limits, sessions: 0 }
    }

    /// Opens a watch. One of the same name ends by that ([`Watchers::is_open`] says so): the
    /// watcher has lost it, or it would not ask for another.
    ///
    /// # Errors
    /// [`TooManyWatchers`].
    pub fn join(&mut self, name: Option<&str>) -> Result<Session, TooManyWatchers> {
        match name {
            Some(name) => {
                if !self.named.contains_key(name) && self.named.len() >= self.limits.named {
                    return Err(TooManyWatchers { limit: self.limits.named });
                }
            }
            None if self.anonymous >= self.limits.anonymous => {
                return Err(TooManyWatchers { limit: self.limits.anonymous });
            }
            None => self.anonymous += 1,
        }
        self.sessions += 1;
        if let Some(name) = name {
            let watcher = Watcher { session: self.sessions, acknowledged: 0, behind: None };
            self.named.insert(name.to_owned(), watcher);
        }
        Ok(Session { name: name.map(str::to_owned), number: self.sessions })
    }

    /// Ends a watch.
    pub fn leave(&mut self, session: &Session) {
        match &session.name {
            Some(name) if self.is_open(session) => {
                self.named.remove(name);
            }
            Some(_) => {}
            None => self.anonymous = self.anonymous.saturating_sub(1),
        }
    }

    /// False when a newer watch took this one's name.
    pub fn is_open(&self, session: &Session) -> bool {
        match &session.name {
            Some(name) => self.named.get(name).is_some_and(|w| w.session == session.number),
            None => true,
        }
    }

    /// Notes that everything up to `version` is in effect at the watcher. False when no such
    /// watcher is here.
    pub fn acknowledge(&mut self, name: &str, version: u64) -> bool {
        let Some(watcher) = self.named.get_mut(name) else {
            return false;
        };
        watcher.acknowledged = watcher.acknowledged.max(version);
        if watcher.behind.is_some_and(|behind| behind <= watcher.acknowledged) {
            watcher.behind = None;
        }
        true
    }

    /// Whether everybody who is waited for has acknowledged `version`.
    pub fn all_acknowledged(&self, version: u64) -> bool {
        self.named.values().all(|w| w.acknowledged >= version || w.behind.is_some())
    }

    /// Those who have not acknowledged `version` are not waited for until they have.
    pub fn give_up_waiting_for(&mut self, version: u64) -> Vec<String> {
        let late = self.named.iter_mut().filter(|(_, w)| w.acknowledged < version);
        late.map(|(name, watcher)| {
            watcher.behind = Some(watcher.behind.unwrap_or(0).max(version));
            name.clone()
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: WatcherLimits = WatcherLimits { named: 2, anonymous: 1 };

    #[test]
    fn a_version_is_acknowledged_when_every_named_watcher_has() {
        let mut watchers = Watchers::new(LIMITS);
        assert!(watchers.all_acknowledged(7), "nobody to wait for");
        watchers.join(None).unwrap();
        assert!(watchers.all_acknowledged(7), "nobody waits for the anonymous");
        let first = watchers.join(Some("first")).unwrap();
        watchers.join(Some("second")).unwrap();
        assert!(watchers.acknowledge("second", 9));
        assert!(watchers.acknowledge("first", 6));
        assert!(!watchers.all_acknowledged(7));
        assert!(watchers.acknowledge("second", 3), "an old one takes nothing back");
        watchers.leave(&first);
        assert!(watchers.all_acknowledged(7));
        assert!(!watchers.acknowledge("first", 7), "it is gone");
    }

    #[test]
    fn who_let_a_wait_run_out_is_waited_for_again_only_after_catching_up() {
        let mut watchers = Watchers::new(LIMITS);
        watchers.join(Some("slow")).unwrap();
        assert_eq!(watchers.give_up_waiting_for(7), ["slow"]);
        assert!(watchers.all_acknowledged(8));
        watchers.acknowledge("slow", 6);
        assert!(watchers.all_acknowledged(8));
        watchers.acknowledge("slow", 7);
        assert!(!watchers.all_acknowledged(8));
    }

    #[test]
    fn a_new_watch_ends_the_one_of_the_same_name() {
        let mut watchers = Watchers::new(LIMITS);
        let old = watchers.join(Some("gateway")).unwrap();
        watchers.acknowledge("gateway", 7);
        let new = watchers.join(Some("gateway")).unwrap();
        assert!(!watchers.is_open(&old));
        assert!(!watchers.all_acknowledged(7), "the new one has to say so itself");
        watchers.leave(&old);
        assert!(watchers.is_open(&new), "the old one's end is not the new one's");
    }

    #[test]
    fn watchers_are_bounded_and_strangers_do_not_take_places() {
        let mut watchers = Watchers::new(LIMITS);
        let stranger = watchers.join(None).unwrap();
        assert_eq!(watchers.join(None), Err(TooManyWatchers { limit: 1 }));
        watchers.join(Some("a")).unwrap();
        watchers.join(Some("b")).unwrap();
        assert_eq!(watchers.join(Some("c")), Err(TooManyWatchers { limit: 2 }));
        assert!(watchers.join(Some("b")).is_ok());
        watchers.leave(&stranger);
        assert!(watchers.join(None).is_ok());
    }
}
