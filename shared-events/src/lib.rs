//! The events between Tourin's services: envelope, types, bus, outbox, consumer pipeline.
//!
//! The life of an event, and the owner of each step:
//!
//! 1. A service appends an [`events::Outgoing`] to its [`outbox`] in the transaction of the change.
//! 2. The [`outbox::Relay`] publishes it on the [`bus`] and marks it once the bus confirmed it. The bus is
//!    [`bus::in_process`] within one process, and [`bus::rabbitmq`] between processes.
//! 3. A [`consumer::Consumer`] receives, validates and expires it. A [`consumer::Handler`] commits the effect together
//!    with the event's id. Only then the consumer acknowledges the event.
//! 4. An event that cannot be handled ends in [`dead_letters`], never in a loop or silently.
//!
//! An event carries its trace all the way ([`trace`]): from the change, over the broker, to the effect.
//!
//! Requests, replies and commands travel over the same bus ([`messaging_patterns`]). The folder `examples` shows an
//! event and a request from end to end.
//!
//! Each module knows only those above it in this list: `backoff`, `sqlite`, `mysql`, `envelope`, `events`,
//! `dead_letters`, `bus`, `trace`, `consumer`, `outbox` and `messaging_patterns`.
//!
//! Delivery is at least once and in order per ordering key. The handler's dedupe makes the effect happen once.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures::FutureExt as _;
use futures::future::BoxFuture;

pub mod backoff;
pub mod bus;
pub mod consumer;
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

/// The source of the current time; passed in so that a test can control it.
pub type Clock = Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>;

/// The time by which a pass deletes old data, or `None` while the clock is not trusted. Called by each such pass; the
/// service that runs the pass decides.
pub type PassTime =
    Arc<dyn Fn() -> BoxFuture<'static, anyhow::Result<Option<DateTime<Utc>>>> + Send + Sync>;

/// Always trusts a clock.
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
