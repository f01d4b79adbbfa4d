//! The instances that requests go to, by service.
//!
//! The [`Directory`] follows the registry. This module gives its instances to a pool for each service that
//! routes name ([`crate::balance`]), and acknowledges each version once the pools with it are in use: a
//! draining instance then knows that this gateway has stopped choosing it.
//!
//! Pingora's `LoadBalancer` (0.9.1) is not used. It compares backends by address and weight alone
//! and not by `Backend::ext`, where an instance's id would be. So an instance that restarts at its
//! old address is no change there, and its old id would stay in logs, in retries and in the key of
//! the connection pool. Each update also restarts round robin at the first backend. Its ring of hashes,
//! `pingora-ketama`, is used.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tourin_registry_api::Directory;

use crate::balance::{Candidates, Member, Policy, PoolSettings, ServicePool, ServiceReport};
use crate::keyed::Keyed;
use crate::outliers::{Group, OutlierMetrics, OutlierSettings};
use crate::routes::CurrentRoutes;

/// The instances of every routed service.
#[derive(Debug)]
pub struct Upstreams {
    directory: Directory,
    routes: Arc<CurrentRoutes>,
    /// By service. Those of a service that is no longer routed stay, with what is remembered of them.
    pools: Keyed<ServicePool>,
    settings: PoolSettings,
    metrics: OutlierMetrics,
    suspected: Arc<Notify>,
}

impl Upstreams {
    /// The instances that `directory` knows of the services of `routes`.
    pub fn new(
        routes: Arc<CurrentRoutes>,
        directory: Directory,
        settings: PoolSettings,
        metrics: OutlierMetrics,
    ) -> Self {
        let (pools, suspected) = (Keyed::default(), Arc::default());
        let upstreams = Self { directory, routes, pools, settings, metrics, suspected };
        // Their metrics are in the output before the first request.
        upstreams.pools();
        upstreams
    }

    /// The pool of a service.
    pub fn pool(&self, service: &str) -> Arc<ServicePool> {
        self.pools.get_or_insert_with(service, || {
            let outliers = Arc::clone(&self.settings.outliers);
            let suspected = Arc::clone(&self.suspected);
            let group = Group::new(service, outliers, self.metrics.of(service), suspected);
            let pool = ServicePool::new(service, &self.settings, group);
            pool.update(&self.directory.instances(service));
            pool
        })
    }

    /// The instance of `service` for an attempt.
    pub fn pick(
        &self,
        service: &str,
        policy: &Policy,
        candidates: &Candidates<'_>,
    ) -> Option<Arc<Member>> {
        self.pool(service).pick(policy, candidates)
    }

    /// The pools of all routed services.
    pub fn pools(&self) -> Vec<Arc<ServicePool>> {
        self.routes.table().services().iter().map(|service| self.pool(service)).collect()
    }

    /// When instances are ejected.
    pub fn outliers(&self) -> &OutlierSettings {
        &self.settings.outliers
    }

    /// Waits until an instance is suspected.
    pub async fn suspected(&self) {
        self.suspected.notified().await;
    }

    /// The state of all instances, for operators.
    pub fn report(&self) -> Vec<ServiceReport> {
        self.pools().iter().map(|pool| pool.report()).collect()
    }

    /// Whether the service has an instance.
    pub fn is_up(&self, service: &str) -> bool {
        !self.pool(service).is_empty()
    }

    /// The ids of the service's instances, draining ones too.
    pub fn ids(&self, service: &str) -> BTreeSet<String> {
        let all = self.directory.all();
        let of_service = all.iter().filter(|instance| instance.service == service);
        of_service.map(|instance| instance.id.clone()).collect()
    }

    /// The registry's version, all instances, and how they do, for operators.
    pub fn to_json(&self) -> serde_json::Value {
        let (version, all) = (self.directory.version(), self.directory.all());
        let connected = *self.directory.connected().borrow();
        serde_json::json!({
            "version": version, "connected": connected, "instances": *all, "balance": self.report(),
        })
    }

    /// How many instances each service has.
    pub fn counts(&self) -> Vec<(String, usize)> {
        self.pools().iter().map(|pool| (pool.name().to_owned(), pool.len())).collect()
    }

    /// Services without an instance.
    pub fn missing(&self) -> BTreeSet<String> {
        let mut services = self.routes.services();
        services.retain(|service| !self.is_up(service));
        services
    }

    /// Whether no service has an instance.
    pub fn all_down(&self) -> bool {
        !self.routes.table().services().iter().any(|service| self.is_up(service))
    }

    /// Takes over each version of the registry and acknowledges it, and logs services that go and come,
    /// until `stop`.
    pub async fn follow(&self, stop: CancellationToken) {
        let mut changed = self.directory.changed();
        let mut routes_changed = self.routes.changed();
        let mut missing = self.routes.services();
        loop {
            // The version first: the instances read after it are at least as new.
            let version = *changed.borrow_and_update();
            for pool in self.pools() {
                pool.update(&self.directory.instances(pool.name()));
            }
            let still_missing = self.missing();
            for service in still_missing.difference(&missing) {
                tracing::warn!(service, "no instance is up; its calls are answered 503");
            }
            for service in missing.difference(&still_missing).filter(|name| self.is_up(name)) {
                tracing::info!(service, "an instance is up");
            }
            missing = still_missing;
            self.directory.acknowledge(version);
            tokio::select! {
                () = stop.cancelled() => return,
                // The senders live as long as `self`.
                _ = changed.changed() => {}
                _ = routes_changed.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tourin_chassis::metrics::Metrics;
    use tourin_registry_api::Instance;

    use super::*;
    use crate::balance::tests::pool_settings;
    use crate::routes::RouteTable;

    fn table(services: &[&str]) -> RouteTable {
        let route = |service: &&str| {
            format!(
                "[[route]]\npath = \"/{service}\"\nservice = \"{service}\"\nmethods = {{ GET = \"public\" }}\n"
            )
        };
        RouteTable::parse(&services.iter().map(route).collect::<String>()).unwrap()
    }

    fn upstreams(services: &[&str], directory: Directory) -> Upstreams {
        let routes = Arc::new(CurrentRoutes::new(table(services)));
        let metrics = OutlierMetrics::new(&Metrics::new("test"));
        Upstreams::new(routes, directory, pool_settings(), metrics)
    }

    #[test]
    fn instances_are_picked_round_robin_without_excluded_ones() {
        let core = |id| Instance::new("core", id, "127.0.0.1:1".parse().unwrap());
        let upstreams = upstreams(&["core"], Directory::fixed([core("a"), core("b")]));
        let pick = |excluded: &[Arc<Member>]| {
            let candidates = Candidates { excluded, ..Candidates::ANY };
            upstreams.pick("core", &Policy::RoundRobin, &candidates)
        };
        let id = |member: Option<Arc<Member>>| member.map(|member| member.instance.id.clone());
        let picked = [pick(&[]), pick(&[]), pick(&[])].map(id).map(Option::unwrap);
        assert_eq!(picked, ["a", "b", "a"]);
        let (b, a) = (pick(&[]).unwrap(), pick(&[]).unwrap());
        assert!((0..4).all(|_| id(pick(std::slice::from_ref(&a))).as_deref() == Some("b")));
        assert_eq!(id(pick(&[a, b])), None);
        assert!(upstreams.pick("unknown", &Policy::RoundRobin, &Candidates::ANY).is_none());
        // A service that is routed later.
        upstreams.routes.replace(table(&["core", "other"]));
        assert_eq!(upstreams.missing(), BTreeSet::from(["other".to_owned()]));
    }

    #[test]
    fn routed_services_without_an_instance_are_missing() {
        let core = Instance::new("core", "a", "127.0.0.1:1".parse().unwrap());
        let known = upstreams(&["core", "other"], Directory::fixed([core]));
        assert_eq!(known.missing(), BTreeSet::from(["other".to_owned()]));
        assert_eq!(known.counts(), [("core".to_owned(), 1), ("other".to_owned(), 0)]);
        assert!(known.is_up("core") && !known.all_down());
        assert!(upstreams(&["core", "other"], Directory::fixed([])).all_down());
    }
}
