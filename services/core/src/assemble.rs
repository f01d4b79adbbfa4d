//! Wires the use cases to their ports.

use std::sync::Arc;

use chrono::TimeDelta;
use tourin_chassis::clock::SharedClock;
use tourin_chassis::metrics::Metrics;
use tourin_chassis::shutdown::Shutdown;

use crate::app::accounts::{Accounts, CONCURRENT_LISTS};
use crate::app::attempts::Attempts;
use crate::app::bookmarks::Bookmarks;
use crate::app::content::Content;
use crate::app::devices::Devices;
use crate::app::fair_queue::FairQueue;
use crate::app::invalidations::Invalidations;
use crate::app::passwords::Passwords;
use crate::app::reviews::Reviews;
use crate::app::revocations::Revocations;
use crate::app::sessions::{Outcomes, Sessions};
use crate::app::signing::SigningKeys;
use crate::app::spots::Spots;
use crate::app::views::{ViewCounts, Views};
use crate::app::visitor_keys::VisitorKeys;
use crate::config::Settings;
use crate::http::{AppState, CookieSettings};
use crate::signals;
use crate::store::Store;

/// What the key of devices is derived for.
const DEVICE_PURPOSE: &str = "tourin/device/v1";

/// The state of the handlers, over `store`. Long polls end when `stopping` begins. Computes one
/// password hash.
///
/// # Errors
/// When settings contradict each other.
pub(crate) fn assemble(
    settings: &Settings,
    store: &Store,
    keys: SigningKeys,
    clock: &SharedClock,
    stopping: &Shutdown,
    metrics: &Metrics,
) -> anyhow::Result<AppState> {
    let policy = settings.tokens.policy()?;
    let passwords = Arc::new(Passwords::new(&settings.passwords.hashing())?);
    let attempts = Arc::new(Attempts::new(&settings.passwords.attempts(), store.shared_attempts()));
    let keys = Arc::new(keys);
    let clock = || Arc::clone(clock);
    let revocations = Arc::new(Revocations::new(store.revocations(), clock()));
    let accounts = Accounts {
        accounts: store.accounts(),
        passwords: Arc::clone(&passwords),
        attempts: Arc::clone(&attempts),
        revocations: Arc::clone(&revocations),
        policy,
        clock: clock(),
        lists: FairQueue::new(CONCURRENT_LISTS),
    };
    let sessions = Sessions {
        accounts: store.accounts(),
        sessions: store.sessions(),
        passwords,
        attempts,
        devices: Devices::new(keys.derive_key(DEVICE_PURPOSE)),
        keys: Arc::clone(&keys),
        revocations: Arc::clone(&revocations),
        policy,
        clock: clock(),
        outcomes: Outcomes::register(metrics),
    };
    let content = Content {
        spots: Spots::new(store.spots(), settings.map_spots.into()),
        bookmarks: Bookmarks::new(store.bookmarks(), clock()),
        reviews: Reviews::new(store.reviews(), clock()),
        views: Views::new(
            store.views(),
            settings.views.policy(),
            clock(),
            ViewCounts::register(metrics),
        ),
        events: store.outbox(),
    };
    let sessions = Arc::new(sessions);
    let signals =
        signals::receiver(&settings.signals, store, Arc::clone(&sessions), clock(), metrics)?;
    Ok(AppState {
        accounts: Arc::new(accounts),
        sessions,
        signals,
        invalidations: Arc::new(Invalidations::new(Arc::clone(&revocations))),
        revocations,
        visitor_keys: Arc::new(VisitorKeys::new(store.visitor_keys(), clock())),
        keys,
        cookies: CookieSettings {
            idle: TimeDelta::seconds(settings.tokens.session_cookie_idle_s.into()),
        },
        step_up: settings.passwords.step_up,
        content,
        shutdown: stopping.clone(),
    })
}
