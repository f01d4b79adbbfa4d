//! Liveness says that the process runs; readiness that it can serve, with the reason for each
//! dependency that stands in the way.

mod store;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

pub use self::store::{Access, Outcomes, StoreState, StoreWatch, Trouble};

/// What a service depends on, and whether each works.
#[derive(Debug, Clone, Default)]
pub struct Health {
    dependencies: Arc<watch::Sender<States>>,
}

type States = BTreeMap<&'static str, State>;

#[derive(Debug, Clone)]
enum State {
    Ready,
    Unready(String),
    /// It is away, and the service goes on without it for now.
    Missed(String),
}

impl Health {
    /// A service without dependencies: ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a dependency, unready until its owner says otherwise.
    pub fn register(&self, name: &'static str) -> Dependency {
        self.add(name, true)
    }

    /// Adds one without which the service goes on serving, such as the registry: while it is away that is
    /// told, and does not make the service unready.
    pub fn register_optional(&self, name: &'static str) -> Dependency {
        self.add(name, false)
    }

    fn add(&self, name: &'static str, is_needed: bool) -> Dependency {
        let dependency = Dependency { name, is_needed, health: self.clone() };
        dependency.set_unready("not reached yet");
        dependency
    }

    /// The dependencies that are not ready, with their reasons; empty when the service can serve.
    pub fn unready(&self) -> BTreeMap<&'static str, String> {
        reasons(&self.dependencies.borrow(), true)
    }

    /// Those that are away while the service can serve without them, with their reasons.
    pub fn missed(&self) -> BTreeMap<&'static str, String> {
        reasons(&self.dependencies.borrow(), false)
    }

    /// Waits until `enough` says so of those that are not ready.
    pub async fn until(&self, enough: impl Fn(&BTreeMap<&'static str, String>) -> bool) {
        let mut changes = self.dependencies.subscribe();
        // It cannot fail: the other end is in `self`.
        changes.wait_for(|states| enough(&reasons(states, true))).await.ok();
    }

    fn set(&self, name: &'static str, state: State) {
        self.dependencies.send_modify(|states| {
            states.insert(name, state);
        });
    }
}

fn reasons(states: &States, of_needed: bool) -> BTreeMap<&'static str, String> {
    states
        .iter()
        .filter_map(|(name, state)| match state {
            State::Unready(reason) if of_needed => Some((*name, reason.clone())),
            State::Missed(reason) if !of_needed => Some((*name, reason.clone())),
            State::Ready | State::Unready(_) | State::Missed(_) => None,
        })
        .collect()
}

/// One dependency, held by the part that knows whether it works.
#[derive(Debug, Clone)]
pub struct Dependency {
    name: &'static str,
    is_needed: bool,
    health: Health,
}

impl Dependency {
    /// It works.
    pub fn set_ready(&self) {
        self.health.set(self.name, State::Ready);
    }

    /// It does not, and why.
    pub fn set_unready(&self, reason: impl Into<String>) {
        let reason = reason.into();
        let state = if self.is_needed { State::Unready(reason) } else { State::Missed(reason) };
        self.health.set(self.name, state);
    }
}
