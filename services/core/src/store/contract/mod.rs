//! What every implementation of the account, session and revocation ports must do, whatever its
//! engine. Each engine runs the whole suite over stores of its own.

mod accounts;
mod rotation;
mod sessions;
mod sqlite;

use chrono::{DateTime, TimeDelta, Utc};

use crate::app::accounts::{AccountStore, Created, Credentials};
use crate::app::passwords::PasswordHash;
use crate::app::revocations::RevocationLog;
use crate::app::sessions::{OpenSession, Opened, SessionStore};
use crate::domain::account::{Account, Email, MemberId, Name};
use crate::domain::session::SessionPolicy;
use crate::domain::token::{RefreshToken, SessionId};

/// A store under test: all three ports on one engine.
pub(super) trait Ports: AccountStore + SessionStore + RevocationLog {}
impl<T: AccountStore + SessionStore + RevocationLog> Ports for T {}

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap() + TimeDelta::seconds(seconds)
}

fn id(text: &str) -> MemberId {
    MemberId::parse(text).unwrap()
}

fn credentials(member: &str, name: &str) -> Credentials {
    Credentials {
        account: Account {
            id: id(member),
            name: Name::parse(name).unwrap(),
            email: Email::parse("someone@example.com").unwrap(),
        },
        hash: PasswordHash(format!("hash of {member}")),
    }
}

async fn sign_up(store: &impl Ports, member: &str) -> Credentials {
    let credentials = credentials(member, "김하나");
    assert_eq!(store.create(&credentials, at(0)).await.unwrap(), Created::Created);
    credentials
}

/// A session just opened, and those that were ended for it.
struct Session {
    id: SessionId,
    token: RefreshToken,
    ended: Vec<SessionId>,
}

async fn log_in(
    store: &impl Ports,
    credentials: &Credentials,
    policy: &SessionPolicy,
    now: DateTime<Utc>,
) -> Session {
    let (session, token) = (SessionId::new(), RefreshToken::random().unwrap());
    let open = OpenSession {
        member: credentials.account.id.clone(),
        session,
        token: token.hash(),
        verified: credentials.hash.clone(),
        rehashed: None,
        now,
    };
    match store.open(open, policy).await.unwrap() {
        Opened::Open { ended } => Session { id: session, token, ended },
        Opened::Stale => panic!("a session with the right password was not opened"),
    }
}

async fn is_open(
    store: &impl Ports,
    member: &MemberId,
    session: SessionId,
    now: DateTime<Utc>,
) -> bool {
    let policy = SessionPolicy::default();
    store.account(member, session, &policy, now).await.unwrap().is_some()
}

/// The sessions in the revocation log at `now`.
async fn revoked(store: &impl Ports, now: DateTime<Utc>) -> Vec<SessionId> {
    let page = store.page_after(0, 1_000, now).await.unwrap();
    page.entries.iter().map(|entry| entry.session).collect()
}
