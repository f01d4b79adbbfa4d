//! The ports of accounts, sessions and revocations: accounts in MySQL, the rest in Redis.
//!
//! # Consistency
//! The account's row in MySQL has an epoch, which grows when all its sessions end: when the password
//! changes or the account is deleted. Every session has the epoch that the account had when its
//! password was verified. Redis opens no session below the member's epoch that it knows. So a log-in
//! that has read the old password cannot open a session after the change has reached Redis, and the
//! change ends a session that was opened before.
//!
//! An epoch in Redis comes from a change that MySQL has committed. If the account, read after that,
//! has a lower epoch and still the verified password, it is a new account with the id of one that an
//! earlier version deleted; it adopts the known epoch.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tourin_chassis::clock::SharedClock;
use tourin_chassis::pruning::{PassLog, StoreTimes};
use tourin_chassis::telemetry::Span;

use super::RedisSessions;
use super::operations::OpenedAt;
use crate::app::StoreError;
use crate::app::accounts::{AccountStore, Changed, Created, Credentials, PasswordChange};
use crate::app::revocations::{RevocationLog, RevocationPage};
use crate::app::session_store::{OpenSession, Opened, Rotation, SessionStore};
use crate::domain::account::{Account, Member, MemberId, ProfileChange};
use crate::domain::page::{Page, PageRequest};
use crate::domain::search::SearchText;
use crate::domain::session::{SessionPolicy, SessionTimes};
use crate::domain::token::{Salt, SessionId, TokenHash};
use crate::store::mysql::{MysqlStore, PendingRevocation};

/// Attempts to open a session while the account's epoch changes.
const OPEN_ATTEMPTS: usize = 4;

/// Accounts in MySQL, sessions and revocations in Redis. Clones share the connections.
#[derive(Clone)]
pub struct MysqlRedisStore {
    mysql: MysqlStore,
    redis: RedisSessions,
    clock: SharedClock,
}

impl MysqlRedisStore {
    pub(crate) fn new(mysql: MysqlStore, redis: RedisSessions, clock: SharedClock) -> Self {
        Self { mysql, redis, clock }
    }

    /// The store of everything except sessions and revocations.
    pub fn mysql(&self) -> &MysqlStore {
        &self.mysql
    }

    /// The address of Redis, without credentials.
    pub fn redis_address(&self) -> &str {
        self.redis.address()
    }

    /// The store of sessions.
    pub(crate) fn sessions(&self) -> &RedisSessions {
        &self.redis
    }

    /// Ends the sessions of changed accounts that still have a note. Returns the number of notes.
    ///
    /// # Errors
    /// [`StoreError`]. Notes that are not settled remain.
    pub async fn settle_pending(&self) -> Result<u64, StoreError> {
        let mut settled = 0;
        for pending in self.mysql.pending_revocations().await? {
            // The tokens may have been renewed since the change, so the lifetime counts from now.
            let lasts = pending.revoked_until - pending.noted_at;
            let until = pending.revoked_until.max(self.clock.now() + lasts);
            self.settle(&pending, until).await?;
            settled += 1;
        }
        Ok(settled)
    }

    async fn settle(
        &self,
        pending: &PendingRevocation,
        revoked_until: DateTime<Utc>,
    ) -> Result<Vec<SessionId>, StoreError> {
        let ended = self.redis.settle(pending, revoked_until).await?;
        self.mysql.forget_pending(pending).await?;
        Ok(ended)
    }

    /// Settles right after the commit. The change is committed, so after a failure the sessions end
    /// a little later.
    async fn settle_now(&self, pending: &PendingRevocation) -> Vec<SessionId> {
        match self.redis.settle(pending, pending.revoked_until).await {
            Ok(ended) => {
                if let Err(error) = self.mysql.forget_pending(pending).await {
                    tracing::warn!(%error, "a pending revocation was settled but not removed");
                }
                ended
            }
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::warn!(error, "the sessions of a changed account are not ended yet");
                Vec::new()
            }
        }
    }
}

#[async_trait]
impl SessionStore for MysqlRedisStore {
    async fn open(&self, open: OpenSession, policy: &SessionPolicy) -> Result<Opened, StoreError> {
        let mut epoch = self.mysql.verified_epoch(&open).await?;
        for _ in 0..OPEN_ATTEMPTS {
            let Some(of_account) = epoch else {
                return Ok(Opened::Stale);
            };
            match self.redis.open(&open, of_account, policy).await? {
                OpenedAt::Open(ended) => return Ok(Opened::Open { ended }),
                OpenedAt::Behind(known) => {
                    Span::current().annotate("retry", &[("reason", "epoch_behind")]);
                    epoch = self.mysql.raise_epoch(&open, known).await?;
                }
            }
        }
        Err(StoreError::Unavailable(anyhow::anyhow!("the account keeps changing")))
    }

    async fn rotate(
        &self,
        presented: &TokenHash,
        salt: &Salt,
        successor: &TokenHash,
        policy: &SessionPolicy,
        now: DateTime<Utc>,
    ) -> Result<Rotation, StoreError> {
        self.redis.rotate(presented, (salt, successor), policy, now).await
    }

    async fn touch(
        &self,
        member: &MemberId,
        session: SessionId,
        policy: &SessionPolicy,
        now: DateTime<Utc>,
    ) -> Result<Option<SessionTimes>, StoreError> {
        self.redis.touch(member, session, policy, now).await
    }

    async fn session_of(
        &self,
        presented: &TokenHash,
    ) -> Result<Option<(MemberId, SessionId)>, StoreError> {
        self.redis.session_of(presented).await
    }

    async fn account(
        &self,
        member: &MemberId,
        session: SessionId,
        policy: &SessionPolicy,
        now: DateTime<Utc>,
    ) -> Result<Option<Account>, StoreError> {
        let times = self.redis.session(member, session).await?;
        if times.is_none_or(|times| now >= policy.expires_at(&times)) {
            return Ok(None);
        }
        Ok(self.mysql.credentials(member).await?.map(|credentials| credentials.account))
    }

    async fn end(
        &self,
        member: &MemberId,
        session: SessionId,
        everywhere: bool,
        revoked_until: DateTime<Utc>,
    ) -> Result<Vec<SessionId>, StoreError> {
        self.redis.end(member, session, everywhere, revoked_until).await
    }

    async fn end_all(
        &self,
        member: &MemberId,
        revoked_until: DateTime<Utc>,
    ) -> Result<Vec<SessionId>, StoreError> {
        self.redis.end_all(member, revoked_until).await
    }

    /// Keys in Redis expire, so there is nothing to prune.
    async fn prune(&self, _: &SessionPolicy, _: DateTime<Utc>) -> Result<u64, StoreError> {
        Ok(0)
    }
}

#[async_trait]
impl RevocationLog for MysqlRedisStore {
    async fn page_after(
        &self,
        after: u64,
        limit: u32,
        now: DateTime<Utc>,
    ) -> Result<RevocationPage, StoreError> {
        self.redis.page_after(after, limit, now).await
    }

    async fn append_canary(
        &self,
        canary: SessionId,
        until: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        self.redis.append_canary(canary, until).await
    }

    async fn invalidate(&self, tags: &[String], until: DateTime<Utc>) -> Result<(), StoreError> {
        self.redis.invalidate(tags, until).await
    }

    async fn prune_expired(&self, now: DateTime<Utc>) -> Result<u64, StoreError> {
        self.redis.prune_expired(now).await
    }
}

#[async_trait]
impl AccountStore for MysqlRedisStore {
    async fn create(
        &self,
        credentials: &Credentials,
        now: DateTime<Utc>,
    ) -> Result<Created, StoreError> {
        self.mysql.create(credentials, now).await
    }

    async fn is_taken(&self, id: &MemberId) -> Result<bool, StoreError> {
        self.mysql.is_taken(id).await
    }

    async fn member(&self, id: &MemberId) -> Result<Option<Member>, StoreError> {
        self.mysql.member(id).await
    }

    async fn credentials(&self, id: &MemberId) -> Result<Option<Credentials>, StoreError> {
        self.mysql.credentials(id).await
    }

    async fn update_profile(
        &self,
        id: &MemberId,
        change: &ProfileChange,
        now: DateTime<Utc>,
    ) -> Result<Option<Account>, StoreError> {
        self.mysql.update_profile(id, change, now).await
    }

    async fn change_password(&self, change: PasswordChange) -> Result<Changed, StoreError> {
        match self.mysql.change_password_and_note(&change).await? {
            Some(pending) => Ok(Changed::Changed { ended: self.settle_now(&pending).await }),
            None => Ok(Changed::Stale),
        }
    }

    async fn delete(
        &self,
        id: &MemberId,
        revoked_until: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<Option<Vec<SessionId>>, StoreError> {
        match self.mysql.delete_and_note(id, revoked_until, now).await? {
            Some(pending) => Ok(Some(self.settle_now(&pending).await)),
            None => Ok(None),
        }
    }

    async fn members(
        &self,
        query: Option<&SearchText>,
        page: PageRequest,
        max: u64,
    ) -> Result<Page<Member>, StoreError> {
        self.mysql.members(query, page, max).await
    }
}

/// The clock is that of Redis, where the pruned entries are; the passes are stored in MySQL.
#[async_trait]
impl PassLog for MysqlRedisStore {
    async fn times(&self, what: &str) -> anyhow::Result<StoreTimes> {
        let times = self.mysql.times(what).await?;
        Ok(StoreTimes { server: Some(self.redis.time().await?), ..times })
    }

    async fn passed(&self, what: &str, at: DateTime<Utc>) -> anyhow::Result<()> {
        self.mysql.passed(what, at).await
    }
}
