//! Ports and use cases, put together.

use std::sync::Arc;

use tourin_chassis::clock::SharedClock;
use tourin_chassis::shutdown::Shutdown;
use tourin_shared_events::outbox::Feed;

use crate::app::accounts::Accounts;
use crate::app::attempts::Attempts;
use crate::app::bookmarks::Bookmarks;
use crate::app::content::Content;
use crate::app::passwords::Passwords;
use crate::app::reviews::Reviews;
use crate::app::revocations::Revocations;
use crate::app::sessions::Sessions;
use crate::app::signing::SigningKeys;
use crate::app::spots::Spots;
use crate::app::views::Views;
use crate::config::Settings;
use crate::http::{AppState, CookieSettings};
use crate::store::sqlite::{SqliteSpots, SqliteStore};

/// What the handlers need, over `store`. Long polls end when `stopping` begins. Computes a password
/// hash.
///
/// # Errors
/// When settings contradict each other.
pub(crate) fn assemble(
    settings: &Settings,
    store: &SqliteStore,
    keys: SigningKeys,
    clock: &SharedClock,
    stopping: &Shutdown,
) -> anyhow::Result<AppState> {
    let policy = settings.tokens.policy()?;
    let passwords = Arc::new(Passwords::new(&settings.passwords.hashing())?);
    let attempts = Arc::new(Attempts::new(&settings.passwords.attempts()));
    let keys = Arc::new(keys);
    let ports: Arc<SqliteStore> = Arc::new(store.clone());
    let clock = || Arc::clone(clock);
    let revocations = Arc::new(Revocations::new(ports.clone(), clock()));
    let accounts = Accounts {
        accounts: ports.clone(),
        passwords: Arc::clone(&passwords),
        attempts: Arc::clone(&attempts),
        revocations: Arc::clone(&revocations),
        policy,
        clock: clock(),
    };
    let sessions = Sessions {
        accounts: ports.clone(),
        sessions: ports.clone(),
        passwords,
        attempts,
        keys: Arc::clone(&keys),
        revocations: Arc::clone(&revocations),
        policy,
        clock: clock(),
    };
    let spots = Arc::new(SqliteSpots::new(store.clone()));
    let content = Content {
        spots: Spots::new(spots, settings.map_spots.into()),
        bookmarks: Bookmarks::new(ports.clone(), clock()),
        reviews: Reviews::new(ports.clone(), clock()),
        views: Views::new(ports, clock()),
        feed: Feed::new(Arc::new(store.outbox()), store.wake.clone(), stopping.token()),
    };
    Ok(AppState {
        accounts: Arc::new(accounts),
        sessions: Arc::new(sessions),
        revocations,
        keys,
        cookies: CookieSettings { secure: settings.tokens.cookie_secure },
        content,
        shutdown: stopping.clone(),
    })
}
