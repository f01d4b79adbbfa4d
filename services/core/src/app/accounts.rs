//! Signing up, the profile, the password, deletion, and the list of members.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::time::timeout;
use tourin_chassis::clock::SharedClock;

use super::StoreError;
use super::attempts::{Attempts, TooManyAttempts};
use super::client_source::ClientSource;
use super::fair_queue::{FairQueue, Requester};
use super::passwords::{Comparison, HashingError, PasswordHash, Passwords};
use super::revocations::Revocations;
use crate::domain::account::{Account, Email, Member, MemberId, Name, ProfileChange};
use crate::domain::page::{Page, PageRequest};
use crate::domain::password::Password;
use crate::domain::search::SearchText;
use crate::domain::session::SessionPolicy;
use crate::domain::token::{SessionId, TokenHash};

/// Most members in a list. Those behind them are found by a longer part of the name.
pub const MAX_LISTED: u64 = 10_000;
/// Lists of members read at once: a search may read all members, and other calls need connections too.
pub const CONCURRENT_LISTS: usize = 2;
/// How long a list waits for its permit.
const LIST_WAIT: Duration = Duration::from_secs(2);

/// An account with its password's hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The account.
    pub account: Account,
    /// Its password's hash.
    pub hash: PasswordHash,
}

/// The outcome of creating an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// It exists now.
    Created,
    /// The id exists or was a deleted member's, or differs from such a one only in case.
    Taken,
}

/// A password to change.
#[derive(Clone, Debug)]
pub struct PasswordChange {
    /// Whose.
    pub member: MemberId,
    /// The hash that the old password was verified with. If the account has another hash by now, the
    /// password was changed concurrently.
    pub verified: PasswordHash,
    /// The new password's hash.
    pub replacement: PasswordHash,
    /// The session that is kept; all others are ended.
    pub keep: SessionId,
    /// The only refresh token that leads to the kept session from now on. Earlier ones are unknown: one
    /// may have been copied, which can be the reason of the change.
    pub token: TokenHash,
    /// Until when the ended sessions stay in the revocation log.
    pub revoked_until: DateTime<Utc>,
    /// When.
    pub now: DateTime<Utc>,
}

/// The outcome of changing a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It is changed.
    Changed {
        /// The sessions ended.
        ended: Vec<SessionId>,
    },
    /// The account is gone, or its password is another one now.
    Stale,
}

/// Accounts. Each method is one transaction. A method that ends sessions appends them to the
/// revocation log in the same transaction.
#[async_trait]
pub trait AccountStore: Send + Sync {
    /// Creates an account unless its id is taken or was a deleted member's, compared without case.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn create(
        &self,
        credentials: &Credentials,
        now: DateTime<Utc>,
    ) -> Result<Created, StoreError>;

    /// Whether [`AccountStore::create`] would return [`Created::Taken`] now.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn is_taken(&self, id: &MemberId) -> Result<bool, StoreError>;

    /// The member with exactly this id.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn member(&self, id: &MemberId) -> Result<Option<Member>, StoreError>;

    /// The account with exactly this id, with its password's hash.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn credentials(&self, id: &MemberId) -> Result<Option<Credentials>, StoreError>;

    /// Changes the profile; `None` if the account does not exist.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn update_profile(
        &self,
        id: &MemberId,
        change: &ProfileChange,
        now: DateTime<Utc>,
    ) -> Result<Option<Account>, StoreError>;

    /// Replaces the password's hash if it is still the verified one, ends the member's other sessions,
    /// and replaces the refresh tokens of the kept one.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn change_password(&self, change: PasswordChange) -> Result<Changed, StoreError>;

    /// Removes the account with the member's content and sessions, keeps a digest of its id so that
    /// nobody else can take it, and appends `user.delete` to the outbox. Returns the ended sessions;
    /// `None` if the account does not exist.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn delete(
        &self,
        id: &MemberId,
        revoked_until: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<Option<Vec<SessionId>>, StoreError>;

    /// Members whose id or name, folded, contains `query`, by id in code point order. Without a
    /// query, all members. The list ends after `max` of them, and so does its total.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn members(
        &self,
        query: Option<&SearchText>,
        page: PageRequest,
        max: u64,
    ) -> Result<Page<Member>, StoreError>;
}

/// Why a use case of accounts failed.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The id is or was another member's, or differs from it only in case.
    #[error("the id is taken; choose another one")]
    Taken,
    /// The account behind the session is gone.
    #[error("the session's account does not exist any more")]
    Gone,
    /// The password is not the account's.
    #[error("the password is wrong")]
    WrongPassword,
    /// Too many wrong passwords for this account.
    #[error(transparent)]
    TooManyAttempts(#[from] TooManyAttempts),
    /// The password could not be hashed or compared.
    #[error(transparent)]
    Hashing(#[from] HashingError),
    /// Too many lists of members are being read.
    #[error("too many lists of members are being read")]
    Busy,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The use cases of accounts.
pub struct Accounts {
    /// Where the accounts are.
    pub accounts: Arc<dyn AccountStore>,
    /// Hashes and compares passwords.
    pub passwords: Arc<Passwords>,
    /// Slows down guessing.
    pub attempts: Arc<Attempts>,
    /// Notified when sessions end.
    pub revocations: Arc<Revocations>,
    /// The lifetimes of tokens, and therefore of revocations.
    pub policy: SessionPolicy,
    /// What time it is.
    pub clock: SharedClock,
    /// Permits to read a list of members, [`CONCURRENT_LISTS`].
    pub lists: FairQueue,
}

impl Accounts {
    /// Creates an account.
    ///
    /// # Errors
    /// [`AccountError::Taken`], or a failure.
    pub async fn sign_up(
        &self,
        id: MemberId,
        password: &Password,
        name: Name,
        email: Email,
        source: &ClientSource,
    ) -> Result<Account, AccountError> {
        // Checked first because a hash is expensive. `create` checks again, for concurrent sign-ups.
        if self.accounts.is_taken(&id).await? {
            return Err(AccountError::Taken);
        }
        let hash = self.passwords.hash(password, &Requester::not_urgent(source)).await?;
        let credentials = Credentials { account: Account { id, name, email }, hash };
        match self.accounts.create(&credentials, self.clock.now()).await? {
            Created::Created => Ok(credentials.account),
            Created::Taken => Err(AccountError::Taken),
        }
    }

    /// Changes name and address.
    ///
    /// # Errors
    /// [`AccountError::Gone`], or a failure.
    pub async fn update_profile(
        &self,
        id: &MemberId,
        change: &ProfileChange,
    ) -> Result<Account, AccountError> {
        let changed = self.accounts.update_profile(id, change, self.clock.now()).await?;
        changed.ok_or(AccountError::Gone)
    }

    /// Checks that the client of a session knows the member's password.
    ///
    /// # Errors
    /// [`AccountError::WrongPassword`], [`AccountError::TooManyAttempts`], or a failure.
    pub async fn confirm(
        &self,
        id: &MemberId,
        session: SessionId,
        typed: &str,
        requester: &Requester,
    ) -> Result<Credentials, AccountError> {
        // A stolen session must not allow faster guessing than the log-in does. The session has its own
        // count, so that guesses from elsewhere do not block the member's change.
        let source = ClientSource::Session(session);
        let attempt = self.attempts.charge(id.as_str(), &source, true).await?;
        let compared = self.compare(id, typed, requester).await;
        // It was right, or could not be judged.
        if !matches!(compared, Ok((_, Comparison::Different))) {
            self.attempts.refund(&attempt).await;
        }
        let (known, comparison) = compared?;
        let Some(known) = known else {
            return Err(AccountError::Gone);
        };
        if comparison == Comparison::Different {
            return Err(AccountError::WrongPassword);
        }
        Ok(known)
    }

    /// Changes the password for a client that knows the old one, ends the member's sessions other than
    /// `keep`, and makes `token` the only refresh token of that. Returns the ended sessions.
    ///
    /// # Errors
    /// As [`Accounts::confirm`].
    pub async fn update_password(
        &self,
        id: &MemberId,
        keep: SessionId,
        token: TokenHash,
        old: &str,
        new: &Password,
        requester: &Requester,
    ) -> Result<Vec<SessionId>, AccountError> {
        let known = self.confirm(id, keep, old, requester).await?;
        let replacement = self.passwords.hash(new, requester).await?;
        let now = self.clock.now();
        let change = PasswordChange {
            member: id.clone(),
            verified: known.hash,
            replacement,
            keep,
            token,
            revoked_until: self.policy.revoked_until(now),
            now,
        };
        match self.accounts.change_password(change).await? {
            Changed::Changed { ended } => {
                self.announce(&ended);
                Ok(ended)
            }
            Changed::Stale => Err(AccountError::WrongPassword),
        }
    }

    /// Removes the account and the member's content. Returns the ended sessions.
    ///
    /// # Errors
    /// [`AccountError::Gone`], or a failure.
    pub async fn delete(&self, id: &MemberId) -> Result<Vec<SessionId>, AccountError> {
        let now = self.clock.now();
        let until = self.policy.revoked_until(now);
        let ended = self.accounts.delete(id, until, now).await?.ok_or(AccountError::Gone)?;
        self.announce(&ended);
        Ok(ended)
    }

    /// A member, by id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn member(&self, id: &MemberId) -> Result<Option<Member>, StoreError> {
        self.accounts.member(id).await
    }

    /// The first [`MAX_LISTED`] members whose id or name contains `query`.
    ///
    /// # Errors
    /// [`AccountError::Busy`], [`AccountError::Store`].
    pub async fn members(
        &self,
        query: Option<&str>,
        page: PageRequest,
        source: &ClientSource,
    ) -> Result<Page<Member>, AccountError> {
        // A query over the limit is longer than any id and any name.
        let Ok(query) = query.map(SearchText::new).transpose() else {
            return Ok(Page { items: Vec::new(), total: 0, request: page });
        };
        let requester = Requester::not_urgent(source);
        let Ok(Ok(_permit)) = timeout(LIST_WAIT, self.lists.acquire(&requester)).await else {
            return Err(AccountError::Busy);
        };
        Ok(self.accounts.members(query.flatten().as_ref(), page, MAX_LISTED).await?)
    }

    async fn compare(
        &self,
        id: &MemberId,
        typed: &str,
        requester: &Requester,
    ) -> Result<(Option<Credentials>, Comparison), AccountError> {
        let known = self.accounts.credentials(id).await?;
        let stored = known.as_ref().map(|credentials| &credentials.hash);
        let comparison = self.passwords.compare(typed, stored, requester).await?;
        Ok((known, comparison))
    }

    fn announce(&self, ended: &[SessionId]) {
        if !ended.is_empty() {
            self.revocations.appended();
        }
    }
}
