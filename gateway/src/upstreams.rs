//! The instances that requests go to, by service.
//!
//! Membership is the registry's; this is its copy on the request path: one table, swapped as a
//! whole when the registry numbers a change, and acknowledged after the swap, so that an instance
//! that drains knows that this gateway has stopped choosing it.
//!
//! Pingora's `LoadBalancer` is not used. It polls a discovery on its own schedule, so the moment of
//! the swap could not be acknowledged; it identifies backends by address, so an instance's id would
//! be lost to logs and to "not the same again"; and round robin is what is left of it here.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;
use tourin_registry_api::{Directory, Instance};

#[derive(Debug, Clone)]
struct Pool {
    instances: Arc<[Instance]>,
    /// Survives swaps, so that a change of membership does not start the round anew.
    next: Arc<AtomicUsize>,
}

/// The instances of every routed service.
#[derive(Debug)]
pub struct Upstreams {
    pools: ArcSwap<HashMap<String, Pool>>,
    services: BTreeSet<String>,
}

impl Upstreams {
    /// No instances yet, of these services.
    pub fn new(services: BTreeSet<String>) -> Self {
        Self { pools: ArcSwap::default(), services }
    }

    /// The next instance of `service` in turn that is not among `excluded` (by id).
    pub fn pick(&self, service: &str, excluded: &[String]) -> Option<Instance> {
        let pools = self.pools.load();
        let pool = pools.get(service)?;
        let count = pool.instances.len();
        let start = pool.next.fetch_add(1, Ordering::Relaxed);
        (0..count)
            .map(|step| &pool.instances[start.wrapping_add(step) % count])
            .find(|instance| !excluded.contains(&instance.id))
            .cloned()
    }

    /// Whether the service has an instance.
    pub fn has_any(&self, service: &str) -> bool {
        let pools = self.pools.load();
        pools.get(service).is_some_and(|pool| !pool.instances.is_empty())
    }

    /// How many instances each service has.
    pub fn counts(&self) -> Vec<(String, usize)> {
        let pools = self.pools.load();
        let count = |service| pools.get(service).map_or(0, |pool| pool.instances.len());
        self.services.iter().map(|service| (service.clone(), count(service))).collect()
    }

    /// Services without an instance.
    pub fn missing(&self) -> Vec<&str> {
        self.services.iter().map(String::as_str).filter(|service| !self.has_any(service)).collect()
    }

    /// Whether no service has an instance.
    pub fn all_down(&self) -> bool {
        !self.services.iter().any(|service| self.has_any(service))
    }

    /// Takes over what `instances` says of each service, and tells the log which has gone or come.
    pub fn swap(&self, instances: impl Fn(&str) -> Arc<[Instance]>) {
        let before = self.pools.load();
        let pools = self.services.iter().map(|service| {
            let instances = instances(service);
            match (self.has_any(service), !instances.is_empty()) {
                (true, false) => {
                    tracing::warn!(
                        service,
                        "no instance is up any more; its calls are answered 503"
                    );
                }
                (false, true) => tracing::info!(service, "an instance is up"),
                (false, false) | (true, true) => {}
            }
            let next = before.get(service).map(|pool| Arc::clone(&pool.next)).unwrap_or_default();
            (service.clone(), Pool { instances, next })
        });
        self.pools.store(Arc::new(pools.collect()));
    }

    /// Follows the registry until `stop`.
    pub async fn follow(&self, directory: Directory, stop: CancellationToken) {
        let mut changed = directory.changed();
        loop {
            // The version first: the instances read after it are at least as new.
            let version = *changed.borrow_and_update();
            self.swap(|service| directory.instances(service));
            directory.acknowledge(version);
            tokio::select! {
                () = stop.cancelled() => return,
                change = changed.changed() => if change.is_err() {
                    // The directory has stopped; what is known stays in use.
                    stop.cancelled().await;
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstreams(ids: &[&str]) -> Upstreams {
        let upstreams = Upstreams::new(["core".to_owned(), "other".to_owned()].into());
        set(&upstreams, ids);
        upstreams
    }

    fn set(upstreams: &Upstreams, ids: &[&str]) {
        upstreams.swap(|service| match service {
            "core" => ids
                .iter()
                .map(|id| Instance::new("core", *id, "127.0.0.1:1".parse().unwrap()))
                .collect(),
            _ => Arc::new([]),
        });
    }

    #[test]
    fn instances_take_turns_across_changes() {
        let upstreams = upstreams(&["a", "b", "c"]);
        let pick = || upstreams.pick("core", &[]).unwrap().id;
        assert_eq!([pick(), pick(), pick(), pick()], ["a", "b", "c", "a"]);
        set(&upstreams, &["a", "b"]);
        let mut turns = [pick(), pick()];
        turns.sort();
        assert_eq!(turns, ["a", "b"]);
        assert_eq!(upstreams.missing(), ["other"]);
    }

    #[test]
    fn the_avoided_are_not_chosen() {
        let upstreams = upstreams(&["a", "b"]);
        for _ in 0..4 {
            assert_eq!(upstreams.pick("core", &["a".to_owned()]).unwrap().id, "b");
        }
        assert!(upstreams.pick("core", &["a".to_owned(), "b".to_owned()]).is_none());
        assert!(upstreams.pick("other", &[]).is_none());
        assert!(upstreams.pick("unknown", &[]).is_none());
    }
}
