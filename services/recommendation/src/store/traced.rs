//! The ports with a span around each operation: a client span of the engine, below the request's or the
//! event's. An operation that goes to the engine in a group with others has a span of its own
//! nevertheless: from when it was asked for until it was done.
//!
//! The words are fixed. What an operation is given (members, spots) is in none of them.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tourin_chassis::health::{Access, Outcomes, Trouble};
use tourin_chassis::telemetry::{DbCall, Span, db_call};

use super::Stores;
use crate::app::ports::{
    HistoryEvent, HistoryOutcome, HistoryStore, Interactions, PortError, Profile, SpotReplica,
    SpotState, TagCursor, TrendEvent, TrendOutcome, TrendStore,
};
use crate::domain::interaction::ChangeOrder;
use crate::domain::similarity::Neighbourhood;
use crate::domain::spot::{Coordinates, Spot, SpotId};
use crate::domain::trend::Ranked;
use crate::servers::{BreakerOpen, Server, trouble};

/// The embedded engine, by OpenTelemetry's name.
const EMBEDDED: &str = "sqlite";

/// The stores with spans around what is asked of them. Servers' names are OpenTelemetry's, too.
pub(crate) fn traced(stores: Stores) -> Stores {
    let engine = |server: &Option<Arc<dyn Server>>| {
        let server = server.as_ref().or(stores.embedded.as_ref());
        Engine {
            name: server.map_or(EMBEDDED, |server| server.name()),
            outcomes: server.map(|server| server.outcomes().clone()).unwrap_or_default(),
        }
    };
    let (trend, documents) = (engine(&stores.trend_server), engine(&stores.document_server));
    let histories = Traced { engine: documents.clone(), port: Arc::clone(&stores.histories) };
    Stores {
        trend: Arc::new(Traced { engine: trend, port: Arc::clone(&stores.trend) }),
        histories: Arc::new(histories),
        spots: Arc::new(Traced { engine: documents, port: Arc::clone(&stores.spots) }),
        ..stores
    }
}

/// An engine by its name, and whom readiness asks how what is asked of it ends.
#[derive(Clone)]
struct Engine {
    name: &'static str,
    outcomes: Outcomes,
}

/// Operations that write. Others only read.
const WRITES: [&str; 7] = ["record", "forget", "prune", "merge", "adopt", "begin", "sweep"];

impl Engine {
    fn note<T>(&self, operation: &str, answer: &Result<T, PortError>) {
        let access = if WRITES.contains(&operation) { Access::Write } else { Access::Read };
        match answer {
            Ok(_) => self.outcomes.succeeded(access),
            Err(error @ PortError::Unavailable(_)) => {
                let (Trouble::Refuses(why) | Trouble::Away(why)) = trouble(error);
                self.outcomes.failed(access, &why);
            }
            // It may be the event's own fault.
            Err(PortError::Failed(_)) => {}
        }
    }
}

/// A port on an engine.
struct Traced<S: ?Sized> {
    engine: Engine,
    port: Arc<S>,
}

impl<S: ?Sized> Traced<S> {
    async fn call<T>(
        &self,
        operation: &'static str,
        on: &'static str,
        run: impl Future<Output = Result<T, PortError>>,
    ) -> Result<T, PortError> {
        let call = DbCall::new(self.engine.name, operation, on);
        let answer = db_call(call, PortError::class, run).await;
        self.engine.note(operation, &answer);
        if let Err(PortError::Unavailable(cause)) = &answer
            && let Some(BreakerOpen(server)) = cause.downcast_ref()
        {
            Span::current().annotate("breaker_open", &[("server", server)]);
        }
        answer
    }
}

#[async_trait]
impl<S: TrendStore + ?Sized> TrendStore for Traced<S> {
    async fn record(&self, event: &TrendEvent) -> Result<TrendOutcome, PortError> {
        self.call("record", "trend", self.port.record(event)).await
    }

    async fn top(&self, limit: usize, now: DateTime<Utc>) -> Result<Vec<Ranked>, PortError> {
        self.call("top", "trend", self.port.top(limit, now)).await
    }

    async fn values(
        &self,
        spots: &[SpotId],
        now: DateTime<Utc>,
    ) -> Result<HashMap<SpotId, f64>, PortError> {
        self.call("values", "trend", self.port.values(spots, now)).await
    }

    async fn forget(
        &self,
        subject: &str,
        order: ChangeOrder,
        remember_until: DateTime<Utc>,
    ) -> Result<(), PortError> {
        self.call("forget", "trend", self.port.forget(subject, order, remember_until)).await
    }

    async fn prune(&self, now: DateTime<Utc>) -> Result<u64, PortError> {
        self.call("prune", "trend", self.port.prune(now)).await
    }
}

#[async_trait]
impl<S: HistoryStore + ?Sized> HistoryStore for Traced<S> {
    async fn record(&self, event: &HistoryEvent) -> Result<HistoryOutcome, PortError> {
        self.call("record", "histories", self.port.record(event)).await
    }

    async fn forget(
        &self,
        member: &str,
        order: ChangeOrder,
        remember_until: DateTime<Utc>,
    ) -> Result<(), PortError> {
        self.call("forget", "histories", self.port.forget(member, order, remember_until)).await
    }

    async fn profile(&self, member: &str, limit: usize) -> Result<Profile, PortError> {
        self.call("profile", "histories", self.port.profile(member, limit)).await
    }

    async fn interactions(&self, member: &str, limit: usize) -> Result<Interactions, PortError> {
        self.call("interactions", "histories", self.port.interactions(member, limit)).await
    }

    async fn neighbourhood(
        &self,
        spot: SpotId,
        holders: usize,
    ) -> Result<Neighbourhood, PortError> {
        self.call("neighbourhood", "histories", self.port.neighbourhood(spot, holders)).await
    }

    async fn degrees(&self, spots: &[SpotId]) -> Result<HashMap<SpotId, u64>, PortError> {
        self.call("degrees", "histories", self.port.degrees(spots)).await
    }

    async fn prune(&self, now: DateTime<Utc>) -> Result<u64, PortError> {
        self.call("prune", "histories", self.port.prune(now)).await
    }
}

#[async_trait]
impl<S: SpotReplica + ?Sized> SpotReplica for Traced<S> {
    async fn merge(&self, states: &[SpotState]) -> Result<usize, PortError> {
        self.call("merge", "spots", self.port.merge(states)).await
    }

    async fn get_many(&self, ids: &[SpotId]) -> Result<HashMap<SpotId, Spot>, PortError> {
        self.call("find", "spots", self.port.get_many(ids)).await
    }

    async fn near(
        &self,
        coordinates: Coordinates,
        tags: Option<&[String]>,
        limit: usize,
    ) -> Result<Vec<Spot>, PortError> {
        self.call("near", "spots", self.port.near(coordinates, tags, limit)).await
    }

    async fn most_tagged(
        &self,
        after: Option<TagCursor>,
        limit: usize,
    ) -> Result<Vec<Spot>, PortError> {
        self.call("most tagged", "spots", self.port.most_tagged(after, limit)).await
    }

    async fn is_complete(&self) -> Result<bool, PortError> {
        self.call("find", "log", self.port.is_complete()).await
    }

    async fn log_id(&self) -> Result<Option<String>, PortError> {
        self.call("find", "log", self.port.log_id()).await
    }

    async fn adopt_log(&self, log_id: &str) -> Result<(), PortError> {
        self.call("adopt", "log", self.port.adopt_log(log_id)).await
    }

    async fn begin_resync(&self) -> Result<u64, PortError> {
        self.call("begin", "resync", self.port.begin_resync()).await
    }

    async fn sweep(&self, resync: u64) -> Result<u64, PortError> {
        self.call("sweep", "spots", self.port.sweep(resync)).await
    }
}
