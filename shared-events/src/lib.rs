//! Events that Tourin's services meet in: envelope, types, bus, outbox, consumer pipeline.
//!
//! The life of an event, and who keeps it at each step:
//!
//! 1. A service appends an [`events::Outgoing`] to its [`outbox`] in the transaction of the change it tells of.
//! 2. The [`outbox::Relay`] publishes it on the [`bus`] and marks it once the bus confirmed it. The bus is
//!    [`bus::in_process`] where all services share a process, and [`bus::rabbitmq`] between processes.
//! 3. A [`consumer::Consumer`] receives it, validates, expires, hands it to a [`consumer::Handler`] that commits the
//!    effect together with the event's id, and only then acknowledges.
//! 4. What cannot be handled ends in [`dead_letters`], never in a loop and never in silence.
//!
//! An event carries its trace on all of this way ([`trace`]): from the change, over the broker, to the effect.
//!
//! Requests, replies and commands travel over the same bus ([`messaging_patterns`]). The folder `examples` has a whole
//! way of an event and of a request.
//!
//! Each module knows only those above it in this list: `backoff`, `counters`, `sqlite`, `mysql`, `envelope`, `events`,
//! `dead_letters`, `bus`, `trace`, `consumer`, `outbox` and `messaging_patterns`.
//!
//! Delivery is at least once and in order per ordering key; the handler's dedupe makes the effect happen once.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures::FutureExt as _;
use futures::future::BoxFuture;

pub mod backoff;
pub mod bus;
pub mod consumer;
mod counters;
pub mod dead_letters;
pub mod envelope;
pub mod events;
pub mod messaging_patterns;
pub mod mysql;
pub mod outbox;
pub mod sqlite;
#[cfg(test)]
mod tests;
pub mod trace;

/// Where "now" comes from; passed in so that a test can own the time.
pub type Clock = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;

/// Asked by each pass that deletes what is old: the time to delete by, or `None` when the clock is not to be trusted at the
/// moment. The service that runs the pass knows how to tell.
pub type PassTime =
    Arc<dyn Fn() -> BoxFuture<'static, anyhow::Result<Option<DateTime<Utc>>>> + Send + Sync>;

/// Trusts a clock whatever it says.
pub fn unchecked(clock: Clock) -> PassTime {
    Arc::new(move || {
        let now = clock();
        async move { Ok(Some(now)) }.boxed()
    })
}

/// The machine's clock.
pub fn system_clock() -> Clock {
    Arc::new(Utc::now)
}
