//! Liveness means that the process runs. Readiness means that it can serve; each dependency that
//! is not ready has a reason.

mod certificate;
mod store;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

pub use self::certificate::watch_certificate;
pub use self::store::{Access, Outcomes, StoreState, StoreWatch, Trouble};

/// The dependencies of a service and their state.
#[derive(Debug, Clone, Default)]
pub struct Health {
    dependencies: Arc<watch::Sender<States>>,
}

type States = BTreeMap<&'static str, State>;

#[derive(Debug, Clone)]
enum State {
    Ready,
    Unready(String),
    /// An optional dependency is not available.
    Missed(String),
    /// Looked at whenever somebody asks.
    Checked(Check),
}

/// Gives the reason why a service is not ready.
#[derive(Clone)]
struct Check(Arc<dyn Fn() -> Option<String> + Send + Sync>);

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Check")
    }
}

impl Health {
    /// A service without dependencies is ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a required dependency. It is unready until its owner calls [`Dependency::set_ready`].
    pub fn register(&self, name: &'static str) -> Dependency {
        self.add(name, true)
    }

    /// Adds an optional dependency, such as the registry. While it is unavailable it is listed by
    /// [`Health::missed`], but the service stays ready.
    pub fn register_optional(&self, name: &'static str) -> Dependency {
        self.add(name, false)
    }

    /// Adds a condition of readiness that is looked at whenever somebody asks. `check` gives the reason why it
    /// does not hold; it must be quick and not block. Nothing wakes [`Health::until`] when it changes.
    pub fn check(
        &self,
        name: &'static str,
        check: impl Fn() -> Option<String> + Send + Sync + 'static,
    ) {
        self.set(name, State::Checked(Check(Arc::new(check))));
    }

    fn add(&self, name: &'static str, is_required: bool) -> Dependency {
        let dependency = Dependency { name, is_required, health: self.clone() };
        dependency.set_unready("not reached yet");
        dependency
    }

    /// The required dependencies that are not ready, with reasons. Empty when the service is ready.
    pub fn unready(&self) -> BTreeMap<&'static str, String> {
        reasons(&self.dependencies.borrow(), true)
    }

    /// The optional dependencies that are not available, with reasons.
    pub fn missed(&self) -> BTreeMap<&'static str, String> {
        reasons(&self.dependencies.borrow(), false)
    }

    /// Waits until `enough` accepts the required dependencies that are not ready.
    pub async fn until(&self, enough: impl Fn(&BTreeMap<&'static str, String>) -> bool) {
        let mut changes = self.dependencies.subscribe();
        // Cannot fail: `self` holds the sender.
        changes.wait_for(|states| enough(&reasons(states, true))).await.ok();
    }

    fn set(&self, name: &'static str, state: State) {
        self.dependencies.send_modify(|states| {
            states.insert(name, state);
        });
    }
}

fn reasons(states: &States, required: bool) -> BTreeMap<&'static str, String> {
    states
        .iter()
        .filter_map(|(name, state)| {
            let reason = match state {
                State::Unready(reason) if required => Some(reason.clone()),
                State::Missed(reason) if !required => Some(reason.clone()),
                State::Checked(check) if required => (check.0)(),
                State::Ready | State::Unready(_) | State::Missed(_) | State::Checked(_) => None,
            };
            Some((*name, reason?))
        })
        .collect()
}

/// One dependency, held by the part that knows its state.
#[derive(Debug, Clone)]
pub struct Dependency {
    name: &'static str,
    is_required: bool,
    health: Health,
}

impl Dependency {
    /// The dependency works.
    pub fn set_ready(&self) {
        self.health.set(self.name, State::Ready);
    }

    /// The dependency does not work, with the reason.
    pub fn set_unready(&self, reason: impl Into<String>) {
        let reason = reason.into();
        let state = if self.is_required { State::Unready(reason) } else { State::Missed(reason) };
        self.health.set(self.name, state);
    }
}
