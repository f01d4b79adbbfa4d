//! What watchers have acknowledged.

use std::collections::BTreeMap;

/// The watchers that acknowledge, and the versions that they have acknowledged.
///
/// Draining instances wait for them. One that caused a time-out is skipped until it has caught up, so that
/// a hanging one delays one departure and not all of them.
#[derive(Debug, Default)]
pub struct Acks(BTreeMap<String, Watcher>);

#[derive(Debug)]
struct Watcher {
    session: u64,
    acknowledged: u64,
    /// The version at which a wait for it timed out.
    timed_out: Option<u64>,
}

/// Who has acknowledged a version, and who has not and is waited for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AckState {
    /// The names of those that have.
    pub done: Vec<String>,
    /// The names of those that have not and are not skipped.
    pub open: Vec<String>,
}

impl Acks {
    /// A watcher's new session, in which it has acknowledged nothing yet.
    pub fn join(&mut self, name: &str, session: u64) {
        self.0.insert(name.to_owned(), Watcher { session, acknowledged: 0, timed_out: None });
    }

    /// The end of a session, unless there is a newer one.
    pub fn leave(&mut self, name: &str, session: u64) {
        if self.0.get(name).is_some_and(|watcher| watcher.session == session) {
            self.0.remove(name);
        }
    }

    /// Notes an acknowledgement of everything up to `version`. False when there is no such watcher.
    pub fn acknowledge(&mut self, name: &str, version: u64) -> bool {
        let Some(watcher) = self.0.get_mut(name) else {
            return false;
        };
        watcher.acknowledged = watcher.acknowledged.max(version);
        if watcher.timed_out.is_some_and(|timed_out| timed_out <= watcher.acknowledged) {
            watcher.timed_out = None;
        }
        true
    }

    /// Who has acknowledged `version`.
    pub fn state(&self, version: u64) -> AckState {
        let mut state = AckState::default();
        for (name, watcher) in &self.0 {
            if watcher.acknowledged >= version {
                state.done.push(name.clone());
            } else if watcher.timed_out.is_none() {
                state.open.push(name.clone());
            }
        }
        state
    }

    /// Skips the watchers that have not acknowledged `version` until they have; gives their names.
    pub fn stop_waiting_for(&mut self, version: u64) -> Vec<String> {
        let late = self.0.iter_mut().filter(|(_, watcher)| watcher.acknowledged < version);
        late.map(|(name, watcher)| {
            watcher.timed_out = Some(watcher.timed_out.unwrap_or(0).max(version));
            name.clone()
        })
        .collect()
    }
}
