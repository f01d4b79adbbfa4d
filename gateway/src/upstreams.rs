//! The instances that requests go to, by service.
//!
//! The [`Directory`] follows the registry and holds the pools. This module adds which services the
//! routes name, and acknowledges each version once the pools with it are in use: a draining
//! instance then knows that this gateway has stopped choosing it.
//!
//! Pingora's `LoadBalancer` (0.9.1) is not used. It compares backends by address and weight alone
//! and not by `Backend::ext`, where an instance's id would be. So an instance that restarts at its
//! old address is no change there, and its old id would stay in logs, in retries and in the key of
//! the connection pool. Each update also restarts round robin at the first backend.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_util::sync::CancellationToken;
use tourin_registry_api::{Directory, Instance};

/// The instances of every routed service.
#[derive(Debug)]
pub struct Upstreams {
    directory: Directory,
    /// Round robin by service. The gateway's own calls advance the directory's, and not this.
    services: BTreeMap<String, AtomicUsize>,
}

impl Upstreams {
    /// The instances of `services` that `directory` knows.
    pub fn new(services: BTreeSet<String>, directory: Directory) -> Self {
        let services = services.into_iter().map(|service| (service, AtomicUsize::default()));
        Self { directory, services: services.collect() }
    }

    /// The next instance of `service`, round robin, that is not among `excluded` (by id).
    pub fn pick(&self, service: &str, excluded: &[String]) -> Option<Instance> {
        let start = self.services.get(service)?.fetch_add(1, Ordering::Relaxed);
        let instances = self.directory.instances(service);
        (0..instances.len())
            .map(|step| &instances[start.wrapping_add(step) % instances.len()])
            .find(|instance| !excluded.contains(&instance.id))
            .cloned()
    }

    /// Whether the service has an instance.
    pub fn is_up(&self, service: &str) -> bool {
        !self.directory.instances(service).is_empty()
    }

    /// How many instances each service has.
    pub fn counts(&self) -> Vec<(String, usize)> {
        let count = |service: &String| self.directory.instances(service).len();
        self.services.keys().map(|service| (service.clone(), count(service))).collect()
    }

    /// Services without an instance.
    pub fn missing(&self) -> BTreeSet<&str> {
        self.services.keys().map(String::as_str).filter(|service| !self.is_up(service)).collect()
    }

    /// Whether no service has an instance.
    pub fn all_down(&self) -> bool {
        self.missing().len() == self.services.len()
    }

    /// Acknowledges the registry's versions and logs services that go and come, until `stop`.
    pub async fn follow(&self, stop: CancellationToken) {
        let mut changed = self.directory.changed();
        let mut missing: BTreeSet<&str> = self.services.keys().map(String::as_str).collect();
        loop {
            // The version first: the instances read after it are at least as new.
            let version = *changed.borrow_and_update();
            let still_missing = self.missing();
            for service in still_missing.difference(&missing) {
                tracing::warn!(service, "no instance is up any more; its calls are answered 503");
            }
            for service in missing.difference(&still_missing) {
                tracing::info!(service, "an instance is up");
            }
            missing = still_missing;
            self.directory.acknowledge(version);
            tokio::select! {
                () = stop.cancelled() => return,
                // The sender lives as long as `self.directory`.
                _ = changed.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_are_picked_round_robin_without_excluded_ones() {
        let core = |id| Instance::new("core", id, "127.0.0.1:1".parse().unwrap());
        let directory = Directory::fixed([core("a"), core("b")]);
        let upstreams = Upstreams::new(["core".to_owned()].into(), directory);
        let pick = |excluded: &[&str]| {
            let excluded: Vec<_> = excluded.iter().map(|id| (*id).to_owned()).collect();
            upstreams.pick("core", &excluded).map(|instance| instance.id)
        };
        let picked = [pick(&[]), pick(&[]), pick(&[])].map(Option::unwrap);
        assert_eq!(picked, ["a", "b", "a"]);
        assert!((0..4).all(|_| pick(&["a"]).as_deref() == Some("b")));
        assert_eq!(pick(&["a", "b"]), None);
        assert!(upstreams.pick("unknown", &[]).is_none());
    }

    #[test]
    fn routed_services_without_an_instance_are_missing() {
        let core = Instance::new("core", "a", "127.0.0.1:1".parse().unwrap());
        let services = BTreeSet::from(["core".to_owned(), "other".to_owned()]);
        let upstreams = Upstreams::new(services.clone(), Directory::fixed([core]));
        assert_eq!(upstreams.missing(), ["other"].into());
        assert_eq!(upstreams.counts(), [("core".to_owned(), 1), ("other".to_owned(), 0)]);
        assert!(upstreams.is_up("core") && !upstreams.all_down());
        assert!(Upstreams::new(services, Directory::fixed([])).all_down());
    }
}
