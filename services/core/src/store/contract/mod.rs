//! The contract of the account, session and revocation ports. Each engine runs the complete suite.

/// Passes the scenarios of all engines to a macro that makes tests of them.
macro_rules! every_scenario {
    ($suite:ident) => {
        $suite! {
            accounts::an_account_reads_back_as_it_was_created,
            accounts::ids_are_case_sensitive_but_taken_in_any_case,
            accounts::of_many_who_want_one_id_at_once_one_gets_it,
            accounts::a_profile_changes_only_the_given_fields,
            accounts::a_new_password_ends_the_members_other_sessions,
            accounts::a_deleted_account_is_gone_with_its_sessions,
            accounts::the_id_of_a_deleted_member_stays_taken,
            accounts::an_id_is_not_taken_while_it_is_deleted,
            accounts::members_are_found_by_part_of_id_or_name,
            accounts::a_list_of_members_and_its_total_end_at_their_bound,
            sessions::a_session_shows_its_own_member_only,
            sessions::the_oldest_session_makes_room_for_the_newest,
            sessions::logging_in_renews_an_outdated_hash,
            sessions::ending_a_session_is_logged_even_when_it_was_over,
            sessions::ending_sessions_everywhere_ends_the_members_only,
            sessions::a_session_that_has_ended_ends_no_other,
            sessions::a_use_keeps_an_open_session_and_uses_nothing_up,
            sessions::a_refresh_token_names_its_session_used_up_or_not,
            sessions::sessions_that_are_over_are_pruned_without_a_revocation,
            sessions::a_pruned_salt_turns_a_repeat_into_a_reuse,
            sessions::of_many_tabs_that_renew_at_once_one_rotates_and_all_agree,
            sessions::the_log_is_read_in_stretches_and_forgets_what_has_expired,
            sessions::ending_all_of_a_member_ends_no_other_members,
            sessions::a_canary_is_in_the_log_and_ends_no_session,
            sessions::an_invalidation_is_in_the_log_and_ends_no_session,
            sessions::a_shorter_token_lifetime_shortens_no_revocation,
            rotation::tokens_older_than_the_remembered_are_unknown,
            clocks::a_clock_that_is_weeks_ahead_for_a_minute_ends_no_session,
            races::a_new_password_leaves_no_session_of_the_old_one,
            races::a_deletion_leaves_no_session,
            races::a_session_that_is_used_while_it_ends_does_not_come_back,
        }
    };
}

mod accounts;
mod clocks;
mod mysql;
mod mysql_redis;
mod races;
mod rotation;
mod sessions;
mod signals;
mod sqlite;
mod visitor_keys;

use chrono::{DateTime, TimeDelta, Utc};
use tourin_chassis::pruning::PassLog;

use crate::app::accounts::{AccountStore, Created, Credentials};
use crate::app::passwords::PasswordHash;
use crate::app::revocations::RevocationLog;
use crate::app::session_store::{OpenSession, Opened, SessionStore};
use crate::domain::account::{Account, Email, MemberId, Name};
use crate::domain::session::SessionPolicy;
use crate::domain::token::{RefreshToken, SessionId};
use crate::store::mysql::MysqlStore;
use crate::store::redis::MysqlRedisStore;
use crate::store::sqlite::SqliteStore;

/// A store under test: all its ports.
pub(super) trait Ports:
    AccountStore + SessionStore + RevocationLog + PassLog + 'static
{
    /// Whether expired sessions disappear without the pruner.
    const EXPIRES_BY_ITSELF: bool = false;
}
impl Ports for MysqlStore {}
impl Ports for SqliteStore {}
impl Ports for MysqlRedisStore {
    const EXPIRES_BY_ITSELF: bool = true;
}

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

/// A new session, and the sessions ended for it.
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
