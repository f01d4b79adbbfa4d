//! Open watches, within bounds.

use std::collections::BTreeMap;

/// Bounds of [`Sessions`].
#[derive(Clone, Copy, Debug)]
pub struct WatcherLimits {
    /// Maximum number of watchers, named or not.
    pub watchers: usize,
    /// Maximum number of watchers of one peer.
    pub per_peer: usize,
}

/// A kind of watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatcherKind<'a> {
    /// Acknowledges under this name.
    Named(&'a str),
    /// Without acknowledgements.
    Unnamed,
}

/// A limit of watchers is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooManyWatchers {
    /// Of all together.
    #[error("there are as many watchers as there may be ({0})")]
    InAll(usize),
    /// Of this peer.
    #[error("this peer has as many watches open as it may ({0}); close one first")]
    OfPeer(usize),
}

/// An open watch; ended by [`Sessions::leave`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The watcher's name, if it acknowledges.
    pub name: Option<String>,
    /// Unique in this process.
    pub number: u64,
    peer: String,
}

/// The watches that are open at this registry.
#[derive(Debug)]
pub struct Sessions {
    /// The number of the last session of each name.
    named: BTreeMap<String, u64>,
    unnamed: usize,
    by_peer: BTreeMap<String, usize>,
    limits: WatcherLimits,
    last: u64,
}

impl Sessions {
    /// No watches.
    pub fn new(limits: WatcherLimits) -> Self {
        Self { named: BTreeMap::new(), unnamed: 0, by_peer: BTreeMap::new(), limits, last: 0 }
    }

    /// Open watches of every kind.
    pub fn count(&self) -> usize {
        self.named.len() + self.unnamed
    }

    /// Opens a watch of a `peer`. It replaces one of the same name, which the watcher must have lost; see
    /// [`Sessions::is_open`].
    ///
    /// # Errors
    /// [`TooManyWatchers`].
    pub fn join(&mut self, kind: WatcherKind<'_>, peer: &str) -> Result<Session, TooManyWatchers> {
        let replaces = matches!(kind, WatcherKind::Named(name) if self.named.contains_key(name));
        let WatcherLimits { watchers, per_peer } = self.limits;
        // The connection of a replaced watch is still open: for a moment or, if its client does not read, for
        // as long as that likes.
        let of_peer = self.by_peer.get(peer).copied().unwrap_or_default();
        let max_of_peer = if replaces { per_peer.saturating_mul(2) } else { per_peer };
        if of_peer >= max_of_peer {
            return Err(TooManyWatchers::OfPeer(per_peer));
        }
        if self.count() >= watchers && !replaces {
            return Err(TooManyWatchers::InAll(watchers));
        }
        *self.by_peer.entry(peer.to_owned()).or_default() += 1;
        self.last += 1;
        let name = match kind {
            WatcherKind::Named(name) => {
                self.named.insert(name.to_owned(), self.last);
                Some(name.to_owned())
            }
            WatcherKind::Unnamed => {
                self.unnamed += 1;
                None
            }
        };
        Ok(Session { name, number: self.last, peer: peer.to_owned() })
    }

    /// Ends a watch.
    pub fn leave(&mut self, session: &Session) {
        if let Some(open) = self.by_peer.get_mut(&session.peer) {
            *open -= 1;
            if *open == 0 {
                self.by_peer.remove(&session.peer);
            }
        }
        match &session.name {
            Some(name) if self.is_open(session) => {
                self.named.remove(name);
            }
            Some(_) => {}
            None => self.unnamed = self.unnamed.saturating_sub(1),
        }
    }

    /// False when a newer watch has replaced this one.
    pub fn is_open(&self, session: &Session) -> bool {
        let Some(name) = &session.name else { return true };
        self.named.get(name) == Some(&session.number)
    }
}

#[cfg(test)]
mod tests {
    use super::WatcherKind::{Named, Unnamed};
    use super::*;

    const PEER: &str = "gateway/a";
    const LIMITS: WatcherLimits = WatcherLimits { watchers: 2, per_peer: 2 };

    #[test]
    fn a_new_watch_ends_the_one_of_the_same_name() {
        let mut sessions = Sessions::new(LIMITS);
        let old = sessions.join(Named("gateway"), PEER).unwrap();
        let new = sessions.join(Named("gateway"), PEER).unwrap();
        assert!(!sessions.is_open(&old));
        sessions.leave(&old);
        assert!(sessions.is_open(&new), "the old one's end is not the new one's");
    }

    #[test]
    fn replaced_watches_that_do_not_end_are_bounded_too() {
        let mut sessions = Sessions::new(LIMITS);
        let open: Vec<_> = (0..4).map(|_| sessions.join(Named("a"), PEER).unwrap()).collect();
        assert_eq!(sessions.join(Named("a"), PEER), Err(TooManyWatchers::OfPeer(2)));
        sessions.leave(&open[0]);
        assert!(sessions.join(Named("a"), PEER).is_ok());
    }

    #[test]
    fn watchers_are_bounded_in_number() {
        let mut sessions = Sessions::new(LIMITS);
        let follower = sessions.join(Unnamed, PEER).unwrap();
        sessions.join(Named("a"), PEER).unwrap();
        let other = "gateway/b";
        assert_eq!(sessions.join(Named("b"), other), Err(TooManyWatchers::InAll(2)));
        assert_eq!(sessions.join(Unnamed, other), Err(TooManyWatchers::InAll(2)));
        assert!(sessions.join(Named("a"), PEER).is_ok(), "it replaces its own");
        sessions.leave(&follower);
        assert!(sessions.join(Unnamed, other).is_ok());
    }

    #[test]
    fn a_peer_may_not_use_up_the_watches() {
        let mut sessions = Sessions::new(WatcherLimits { watchers: 9, per_peer: 2 });
        let first = sessions.join(Unnamed, PEER).unwrap();
        sessions.join(Named("a"), PEER).unwrap();
        assert_eq!(sessions.join(Unnamed, PEER), Err(TooManyWatchers::OfPeer(2)));
        assert!(sessions.join(Unnamed, "gateway/b").is_ok());
        sessions.leave(&first);
        assert!(sessions.join(Unnamed, PEER).is_ok());
    }
}
