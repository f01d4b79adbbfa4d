//! The port of sessions' stores.

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::StoreError;
use super::passwords::PasswordHash;
use crate::domain::account::{Account, MemberId};
use crate::domain::session::{SessionPolicy, SessionTimes};
use crate::domain::token::{Salt, SessionId, TokenHash};

/// Most sessions, salts and revocations, each, that one pruning pass removes: 10,000 a minute. A clock
/// that is wrong for longer than its check notices then does not end all sessions at once.
pub const PRUNED_PER_PASS: i64 = 10_000;

/// A session to open.
#[derive(Clone, Debug)]
pub struct OpenSession {
    /// Whose.
    pub member: MemberId,
    /// Its id.
    pub session: SessionId,
    /// Its first refresh token.
    pub token: TokenHash,
    /// The verified password hash. If the account has another hash by now, the password was changed
    /// concurrently, and the session must not open.
    pub verified: PasswordHash,
    /// Its replacement with the current costs, if it is outdated.
    pub rehashed: Option<PasswordHash>,
    /// When.
    pub now: DateTime<Utc>,
}

/// The outcome of opening a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The session is open. The member's oldest sessions above the limit were ended.
    Open {
        /// The sessions ended.
        ended: Vec<SessionId>,
    },
    /// The account is gone, or its password is another one now.
    Stale,
}

/// The outcome of presenting a refresh token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// The token was current; its successor is current now.
    Rotated {
        /// Whose session it is.
        member: MemberId,
        /// The session.
        session: SessionId,
        /// When it began and was last renewed (now).
        times: SessionTimes,
    },
    /// The token was used within the grace; its successor under `salt` is current.
    Repeated {
        /// Whose session it is.
        member: MemberId,
        /// The session.
        session: SessionId,
        /// When it began and was last renewed.
        times: SessionTimes,
        /// What the successor was derived with.
        salt: Salt,
    },
    /// The token was used before; its session is ended.
    Reused {
        /// The session ended.
        session: SessionId,
    },
    /// The session has expired.
    Expired,
    /// The token belongs to no session.
    Unknown,
}

/// Sessions and their refresh tokens. Each method is one transaction. A method that ends sessions
/// appends them to the revocation log in the same transaction.
#[async_trait]
pub trait SessionStore: Send + Sync {
    /// Opens a session if the verified password hash is still the account's. Replaces the hash if a
    /// new one is given, and ends the member's oldest sessions above `policy.per_member`.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn open(&self, open: OpenSession, policy: &SessionPolicy) -> Result<Opened, StoreError>;

    /// Judges the presented token ([`SessionPolicy::judge`]). A current token is used up, and its
    /// successor under `salt` becomes current. A reused token ends its session.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn rotate(
        &self,
        presented: &TokenHash,
        salt: &Salt,
        successor: &TokenHash,
        policy: &SessionPolicy,
        now: DateTime<Utc>,
    ) -> Result<Rotation, StoreError>;

    /// Renews a session of the member that is open at `now`, without using a token. Returns its
    /// times; `None` if it is not open.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn touch(
        &self,
        member: &MemberId,
        session: SessionId,
        policy: &SessionPolicy,
        now: DateTime<Utc>,
    ) -> Result<Option<SessionTimes>, StoreError>;

    /// The member and the session of a refresh token, used or not.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn session_of(
        &self,
        presented: &TokenHash,
    ) -> Result<Option<(MemberId, SessionId)>, StoreError>;

    /// The account of a session that is open at `now`.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn account(
        &self,
        member: &MemberId,
        session: SessionId,
        policy: &SessionPolicy,
        now: DateTime<Utc>,
    ) -> Result<Option<Account>, StoreError>;

    /// Ends this session of the member; with `everywhere` also the member's others, unless this one
    /// had ended before. Returns the ended sessions. This session is always among them and in the
    /// revocation log, since access tokens of it may still be valid.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn end(
        &self,
        member: &MemberId,
        session: SessionId,
        everywhere: bool,
        revoked_until: DateTime<Utc>,
    ) -> Result<Vec<SessionId>, StoreError>;

    /// Ends all sessions of the member; returns them.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn end_all(
        &self,
        member: &MemberId,
        revoked_until: DateTime<Utc>,
    ) -> Result<Vec<SessionId>, StoreError>;

    /// Removes sessions that have expired at `now`, and salts whose grace has passed, at most
    /// [`PRUNED_PER_PASS`] of each. Returns the number of sessions. No revocation is needed: the
    /// access tokens of such sessions have expired too.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn prune(&self, policy: &SessionPolicy, now: DateTime<Utc>) -> Result<u64, StoreError>;
}
