//! Liveness says that the process runs; readiness that it can serve, with the reason for each
//! dependency that stands in the way.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// What a service depends on, and whether each works.
#[derive(Debug, Clone, Default)]
pub struct Health {
    dependencies: Arc<RwLock<BTreeMap<&'static str, State>>>,
}

#[derive(Debug, Clone)]
enum State {
    Ready,
    Unready(String),
}

impl Health {
    /// A service without dependencies: ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a dependency, unready until its owner says otherwise.
    pub fn register(&self, name: &'static str) -> Dependency {
        let dependency = Dependency { name, health: self.clone() };
        dependency.set_unready("not reached yet");
        dependency
    }

    /// The dependencies that are not ready, with their reasons; empty when the service can serve.
    pub fn unready(&self) -> BTreeMap<&'static str, String> {
        let dependencies = self.dependencies.read().unwrap_or_else(PoisonError::into_inner);
        dependencies
            .iter()
            .filter_map(|(name, state)| match state {
                State::Ready => None,
                State::Unready(reason) => Some((*name, reason.clone())),
            })
            .collect()
    }

    fn set(&self, name: &'static str, state: State) {
        let mut dependencies = self.dependencies.write().unwrap_or_else(PoisonError::into_inner);
        dependencies.insert(name, state);
    }
}

/// One dependency, held by the part that knows whether it works.
#[derive(Debug, Clone)]
pub struct Dependency {
    name: &'static str,
    health: Health,
}

impl Dependency {
    /// It works.
    pub fn set_ready(&self) {
        self.health.set(self.name, State::Ready);
    }

    /// It does not, and why.
    pub fn set_unready(&self, reason: impl Into<String>) {
        self.health.set(self.name, State::Unready(reason.into()));
    }
}
