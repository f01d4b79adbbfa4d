//! The route table in use, which a reload replaces as a whole.

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::{Route, RouteTable};

/// The route table in use. Requests in progress keep the route that they were admitted by.
#[derive(Debug)]
pub struct CurrentRoutes {
    table: ArcSwap<RouteTable>,
    changed: watch::Sender<()>,
}

impl CurrentRoutes {
    /// Begins with `table`.
    pub fn new(table: RouteTable) -> Self {
        Self { table: ArcSwap::from_pointee(table), changed: watch::Sender::new(()) }
    }

    /// The table in use now.
    pub fn table(&self) -> Arc<RouteTable> {
        self.table.load_full()
    }

    /// The route of a canonical path.
    pub fn find(&self, path: &str) -> Option<Arc<Route>> {
        self.table.load().find(path).cloned()
    }

    /// The services that the table names.
    pub fn services(&self) -> BTreeSet<String> {
        self.table.load().services().clone()
    }

    /// Uses `table` from the next request on.
    pub fn replace(&self, table: RouteTable) {
        self.table.store(Arc::new(table));
        self.changed.send_replace(());
    }

    /// Wakes at every change of the table.
    pub fn changed(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}
