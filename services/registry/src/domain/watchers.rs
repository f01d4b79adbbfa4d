//! Open watches and their acknowledgements.

use std::collections::BTreeMap;

/// Bounds of [`Watchers`].
#[derive(Clone, Copy, Debug)]
pub struct WatcherLimits {
    /// Maximum number of authenticated watchers, named or not.
    pub authenticated: usize,
    /// Maximum number of anonymous watchers, separate so that they cannot use up the mesh's limit.
    pub anonymous: usize,
}

/// A kind of watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatcherKind<'a> {
    /// Authenticated, and acknowledges under this name.
    Named(&'a str),
    /// Authenticated, without acknowledgements.
    Unnamed,
    /// Without the secret.
    Anonymous,
}

/// The limit of watchers of this kind is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are as many watchers as there may be ({limit})")]
pub struct TooManyWatchers {
    limit: usize,
}

/// An open watch; ended by [`Watchers::leave`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    kind: SessionKind,
    number: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum SessionKind {
    Named(String),
    Unnamed,
    Anonymous,
}

/// The open watches, and the versions that they have acknowledged.
///
/// Draining instances wait for named watchers alone. A watcher that caused a time-out is skipped until
/// it has caught up, so that a hanging one delays one departure and not all of them.
#[derive(Debug)]
pub struct Watchers {
    named: BTreeMap<String, Watcher>,
    unnamed: usize,
    anonymous: usize,
    limits: WatcherLimits,
    sessions: u64,
}

#[derive(Debug)]
struct Watcher {
    session: u64,
    acknowledged: u64,
    /// The version at which a wait for it timed out.
    timed_out: Option<u64>,
}

impl Watchers {
    /// No watches.
    pub fn new(limits: WatcherLimits) -> Self {
        Self { named: BTreeMap::new(), unnamed: 0, anonymous: 0, limits, sessions: 0 }
    }

    /// Open watches of every kind.
    pub fn count(&self) -> usize {
        self.named.len() + self.unnamed + self.anonymous
    }

    /// Opens a watch. It replaces one of the same name, which the watcher must have lost; see
    /// [`Watchers::is_open`].
    ///
    /// # Errors
    /// [`TooManyWatchers`].
    pub fn join(&mut self, kind: WatcherKind<'_>) -> Result<Session, TooManyWatchers> {
        let replaces = matches!(kind, WatcherKind::Named(name) if self.named.contains_key(name));
        let (taken, limit) = match kind {
            WatcherKind::Anonymous => (self.anonymous, self.limits.anonymous),
            _ => (self.named.len() + self.unnamed, self.limits.authenticated),
        };
        if taken >= limit && !replaces {
            return Err(TooManyWatchers { limit });
        }
        self.sessions += 1;
        let kind = match kind {
            WatcherKind::Named(name) => {
                let watcher = Watcher { session: self.sessions, acknowledged: 0, timed_out: None };
                self.named.insert(name.to_owned(), watcher);
                SessionKind::Named(name.to_owned())
            }
            WatcherKind::Unnamed => {
                self.unnamed += 1;
                SessionKind::Unnamed
            }
            WatcherKind::Anonymous => {
                self.anonymous += 1;
                SessionKind::Anonymous
            }
        };
        Ok(Session { kind, number: self.sessions })
    }

    /// Ends a watch.
    pub fn leave(&mut self, session: &Session) {
        match &session.kind {
            SessionKind::Named(name) if self.is_open(session) => {
                self.named.remove(name);
            }
            SessionKind::Named(_) => {}
            SessionKind::Unnamed => self.unnamed = self.unnamed.saturating_sub(1),
            SessionKind::Anonymous => self.anonymous = self.anonymous.saturating_sub(1),
        }
    }

    /// False when a newer watch has replaced this one.
    pub fn is_open(&self, session: &Session) -> bool {
        match &session.kind {
            SessionKind::Named(name) => {
                self.named.get(name).is_some_and(|w| w.session == session.number)
            }
            SessionKind::Unnamed | SessionKind::Anonymous => true,
        }
    }

    /// Notes an acknowledgement of everything up to `version`. False when there is no such watcher.
    pub fn acknowledge(&mut self, name: &str, version: u64) -> bool {
        let Some(watcher) = self.named.get_mut(name) else {
            return false;
        };
        watcher.acknowledged = watcher.acknowledged.max(version);
        if watcher.timed_out.is_some_and(|timed_out| timed_out <= watcher.acknowledged) {
            watcher.timed_out = None;
        }
        true
    }

    /// Whether all named watchers but skipped ones have acknowledged `version`.
    pub fn all_acknowledged(&self, version: u64) -> bool {
        self.named.values().all(|w| w.acknowledged >= version || w.timed_out.is_some())
    }

    /// Skips the watchers that have not acknowledged `version` until they have; gives their names.
    pub fn stop_waiting_for(&mut self, version: u64) -> Vec<String> {
        let late = self.named.iter_mut().filter(|(_, w)| w.acknowledged < version);
        late.map(|(name, watcher)| {
            watcher.timed_out = Some(watcher.timed_out.unwrap_or(0).max(version));
            name.clone()
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::WatcherKind::{Anonymous, Named, Unnamed};
    use super::*;

    const LIMITS: WatcherLimits = WatcherLimits { authenticated: 2, anonymous: 1 };

    #[test]
    fn a_version_is_acknowledged_when_every_named_watcher_has() {
        let mut watchers = Watchers::new(LIMITS);
        assert!(watchers.all_acknowledged(7), "nobody to wait for");
        watchers.join(Anonymous).unwrap();
        assert!(watchers.all_acknowledged(7), "nobody waits for the anonymous");
        let first = watchers.join(Named("first")).unwrap();
        watchers.join(Named("second")).unwrap();
        assert!(watchers.acknowledge("second", 9));
        assert!(watchers.acknowledge("first", 6));
        assert!(!watchers.all_acknowledged(7));
        assert!(watchers.acknowledge("second", 3), "an old one takes nothing back");
        watchers.leave(&first);
        assert!(watchers.all_acknowledged(7));
        assert!(!watchers.acknowledge("first", 7), "it is gone");
    }

    #[test]
    fn a_watcher_that_timed_out_counts_again_only_after_catching_up() {
        let mut watchers = Watchers::new(LIMITS);
        watchers.join(Named("slow")).unwrap();
        assert_eq!(watchers.stop_waiting_for(7), ["slow"]);
        assert!(watchers.all_acknowledged(8));
        watchers.acknowledge("slow", 6);
        assert!(watchers.all_acknowledged(8));
        watchers.acknowledge("slow", 7);
        assert!(!watchers.all_acknowledged(8));
    }

    #[test]
    fn a_new_watch_ends_the_one_of_the_same_name() {
        let mut watchers = Watchers::new(LIMITS);
        let old = watchers.join(Named("gateway")).unwrap();
        watchers.acknowledge("gateway", 7);
        let new = watchers.join(Named("gateway")).unwrap();
        assert!(!watchers.is_open(&old));
        assert!(!watchers.all_acknowledged(7), "the new one has to say so itself");
        watchers.leave(&old);
        assert!(watchers.is_open(&new), "the old one's end is not the new one's");
    }

    #[test]
    fn watchers_are_bounded_and_anonymous_ones_take_no_reserved_slot() {
        let mut watchers = Watchers::new(LIMITS);
        let stranger = watchers.join(Anonymous).unwrap();
        assert_eq!(watchers.join(Anonymous), Err(TooManyWatchers { limit: 1 }));
        watchers.join(Named("a")).unwrap();
        watchers.join(Named("b")).unwrap();
        assert_eq!(watchers.join(Named("c")), Err(TooManyWatchers { limit: 2 }));
        assert!(watchers.join(Named("b")).is_ok());
        watchers.leave(&stranger);
        assert!(watchers.join(Anonymous).is_ok());
    }

    #[test]
    fn an_authorized_unnamed_watcher_gets_a_reserved_slot() {
        let mut watchers = Watchers::new(LIMITS);
        watchers.join(Anonymous).unwrap();
        let follower =
            watchers.join(Unnamed).expect("anonymous watchers take no place of the mesh");
        watchers.join(Named("a")).unwrap();
        assert_eq!(watchers.join(Named("b")), Err(TooManyWatchers { limit: 2 }));
        assert_eq!(watchers.join(Unnamed), Err(TooManyWatchers { limit: 2 }));
        watchers.leave(&follower);
        assert!(watchers.join(Unnamed).is_ok());
        assert_eq!(watchers.join(Anonymous), Err(TooManyWatchers { limit: 1 }));
    }
}
