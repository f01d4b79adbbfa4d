//! Logging in, renewing and ending sessions.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tourin_chassis::clock::SharedClock;

use super::StoreError;
use super::accounts::{AccountStore, Credentials};
use super::attempts::{Attempts, ClientSource, TooManyAttempts};
pub use super::outcomes::Outcomes;
use super::passwords::{Comparison, HashingError, PasswordHash, Passwords};
use super::revocations::Revocations;
use super::signing::SigningKeys;
pub use super::tokens::{AccessToken, TokenPair};
use crate::domain::account::{Account, MemberId};
use crate::domain::session::{SessionPolicy, SessionTimes};
use crate::domain::token::{NoEntropy, RefreshToken, Salt, SessionId, TokenHash};

/// Sessions, salts and revocations that one pass of pruning removes at most, of each: 10,000 a minute, so that a clock that is
/// wrong for longer than its check notices does not end all sessions at once.
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
    /// The password hash that was verified: if it is no longer the account's, the password has been
    /// changed meanwhile and the session must not open.
    pub verified: PasswordHash,
    /// A hash with today's costs to replace it with.
    pub rehashed: Option<PasswordHash>,
    /// When.
    pub now: DateTime<Utc>,
}

/// What became of a session to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// It is open; these, the oldest, were ended to make room.
    Open {
        /// The sessions ended.
        ended: Vec<SessionId>,
    },
    /// The account is gone, or its password is another one now.
    Stale,
}

/// What became of a refresh token that was presented.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// It was current, and its successor is now.
    Rotated {
        /// Whose session it is.
        member: MemberId,
        /// The session.
        session: SessionId,
        /// When it began and was last renewed (now).
        times: SessionTimes,
    },
    /// It was used a moment ago; its successor is the one under `salt` and is current.
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
    /// It had been used before; the session is ended by now.
    Reused {
        /// The session ended.
        session: SessionId,
    },
    /// Its session is over.
    Expired,
    /// No session knows it.
    Unknown,
}

/// Sessions and their refresh tokens. Each method is one transaction; one that ends sessions
/// appends them to the revocation log in the same one.
#[async_trait]
pub trait SessionStore: Send + Sync {
    /// Opens a session if the verified password hash is still the account's, replaces the hash when
    /// a fresh one is given, and ends the member's oldest sessions above `policy.per_member`.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn open(&self, open: OpenSession, policy: &SessionPolicy) -> Result<Opened, StoreError>;

    /// Judges the presented token ([`SessionPolicy::judge`]) and acts: a current one is used up and
    /// its successor under `salt` becomes current; a reused one ends its session.
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

    /// Moves the idle clock of a session of the member that is open at `now`, and uses nothing up;
    /// says when it began and was last renewed (now). `None` when it is not open.
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

    /// The session that a refresh token, used up or not, is of, and its member.
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

    /// Ends this session of the member; says which are ended. It is among them, and in the
    /// revocation log, even when it was over already: its access tokens may be about. With
    /// `everywhere` the member's others end with it, unless it was over: what has ended has no say
    /// over what goes on.
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

    /// Removes sessions that are over at `now` (no revocation is needed: their access tokens are
    /// too) and forgets salts whose grace is over, at most [`PRUNED_PER_PASS`]; says how many sessions.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn prune(&self, policy: &SessionPolicy, now: DateTime<Utc>) -> Result<u64, StoreError>;
}

/// Somebody has logged in.
#[derive(Debug)]
pub struct LoggedIn {
    /// Who.
    pub account: Account,
    /// The new session's tokens.
    pub tokens: TokenPair,
    /// Sessions that were ended to make room.
    pub ended: Vec<SessionId>,
}

/// Why nobody has logged in, or no session was renewed.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The id or the password is wrong. Which one is not told.
    #[error("the id or the password is wrong")]
    WrongCredentials,
    /// Too many wrong passwords for this account.
    #[error(transparent)]
    TooManyAttempts(#[from] TooManyAttempts),
    /// The refresh token is of no use.
    #[error("the refresh token is unknown, used, expired or revoked; log in again")]
    Refused {
        /// The session that was ended because the token had been used before.
        ended: Option<SessionId>,
    },
    /// The password could not be compared.
    #[error(transparent)]
    Hashing(#[from] HashingError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A token could not be made.
    #[error("a token could not be made")]
    Token(#[source] anyhow::Error),
}

impl From<NoEntropy> for SessionError {
    fn from(error: NoEntropy) -> Self {
        Self::Token(error.into())
    }
}

/// The use cases of sessions.
pub struct Sessions {
    /// Where the accounts are.
    pub accounts: Arc<dyn AccountStore>,
    /// Where the sessions are.
    pub sessions: Arc<dyn SessionStore>,
    /// Compares passwords.
    pub passwords: Arc<Passwords>,
    /// Slows down guessing.
    pub attempts: Arc<Attempts>,
    /// Signs access tokens.
    pub keys: Arc<SigningKeys>,
    /// Is told when sessions end.
    pub revocations: Arc<Revocations>,
    /// How long everything lives.
    pub policy: SessionPolicy,
    /// What time it is.
    pub clock: SharedClock,
    /// What became of log-ins and renewals.
    pub outcomes: Outcomes,
}

impl Sessions {
    /// Opens a session for a client that knows the password. Wrong ones count for the `source` they come
    /// from.
    ///
    /// # Errors
    /// [`SessionError`]; an unknown id takes as long as a wrong password.
    pub async fn log_in(
        &self,
        id: &str,
        password: &str,
        source: &ClientSource,
    ) -> Result<LoggedIn, SessionError> {
        let outcome = self.try_log_in(id, password, source).await;
        self.outcomes.count_log_in(&outcome);
        outcome
    }

    async fn try_log_in(
        &self,
        id: &str,
        password: &str,
        source: &ClientSource,
    ) -> Result<LoggedIn, SessionError> {
        self.attempts.charge(id, source)?;
        let known = match MemberId::parse(id) {
            Ok(id) => self.accounts.credentials(&id).await,
            Err(_) => Ok(None),
        };
        let known = known.inspect_err(|_| self.attempts.refund(id, source))?;
        let stored = known.as_ref().map(|credentials| &credentials.hash);
        let comparison = self
            .passwords
            .compare(password, stored)
            .await
            .inspect_err(|_| self.attempts.refund(id, source))?;
        let (Some(Credentials { account, hash }), Comparison::Same { outdated }) =
            (known, comparison)
        else {
            return Err(SessionError::WrongCredentials);
        };
        self.attempts.refund(id, source);

        let rehashed = if outdated { self.rehash(password).await } else { None };
        let now = self.clock.now();
        let session = SessionId::new();
        let refresh_token = RefreshToken::random()?;
        // Signed first: a session without a token would only take up room.
        let times = SessionTimes { started_at: now, renewed_at: now };
        let token = refresh_token.hash();
        let tokens = self.pair(&account.id, session, refresh_token, &times, now)?;
        let open = OpenSession {
            member: account.id.clone(),
            session,
            token,
            verified: hash,
            rehashed,
            now,
        };
        match self.sessions.open(open, &self.policy).await? {
            Opened::Open { ended } => {
                self.announce(&ended);
                Ok(LoggedIn { account, tokens, ended })
            }
            Opened::Stale => Err(SessionError::WrongCredentials),
        }
    }

    /// Exchanges a refresh token for a new pair.
    ///
    /// # Errors
    /// [`SessionError::Refused`] with the session that was ended, if the token had been used before.
    pub async fn renew(&self, presented: &str) -> Result<TokenPair, SessionError> {
        let outcome = self.try_renew(presented).await;
        self.outcomes.count_renewal(&outcome);
        outcome
    }

    async fn try_renew(&self, presented: &str) -> Result<TokenPair, SessionError> {
        let Some(presented) = RefreshToken::parse(presented) else {
            return Err(SessionError::Refused { ended: None });
        };
        let salt = Salt::random()?;
        let successor = presented.successor(&salt);
        let now = self.clock.now();
        let rotation = self
            .sessions
            .rotate(&presented.hash(), &salt, &successor.hash(), &self.policy, now)
            .await?;
        match rotation {
            Rotation::Rotated { member, session, times } => {
                self.pair(&member, session, successor, &times, now)
            }
            Rotation::Repeated { member, session, times, salt } => {
                self.pair(&member, session, presented.successor(&salt), &times, now)
            }
            Rotation::Reused { session } => {
                tracing::warn!(%session, "a used refresh token came back; its session is ended");
                self.announce(&[session]);
                Err(SessionError::Refused { ended: Some(session) })
            }
            Rotation::Expired | Rotation::Unknown => Err(SessionError::Refused { ended: None }),
        }
    }

    /// The account behind a session, if the session is open.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn account(
        &self,
        member: &MemberId,
        session: SessionId,
    ) -> Result<Option<Account>, StoreError> {
        self.sessions.account(member, session, &self.policy, self.clock.now()).await
    }

    /// A new access token of a session that is open; `None` when it is not. Nothing is used up, so
    /// that it does no harm to ask twice.
    ///
    /// # Errors
    /// [`SessionError::Store`], [`SessionError::Token`].
    pub async fn slide(
        &self,
        member: &str,
        session: &str,
    ) -> Result<Option<AccessToken>, SessionError> {
        let Some((member, session)) = read(member, session) else {
            return Ok(None);
        };
        let now = self.clock.now();
        match self.sessions.touch(&member, session, &self.policy, now).await? {
            Some(times) => self.access_token(&member, session, &times, now).map(Some),
            None => Ok(None),
        }
    }

    /// Ends what is named: the session `named` of a member, those that the refresh tokens are of
    /// (mostly the same one), and with `everywhere` the others of their members. Says which are ended;
    /// one that was over already is among them. What names no session ends none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn log_out(
        &self,
        named: Option<(&str, &str)>,
        refresh_tokens: &[&str],
        everywhere: bool,
    ) -> Result<Vec<SessionId>, StoreError> {
        let mut found = Vec::from_iter(named.and_then(|(member, session)| read(member, session)));
        for token in refresh_tokens.iter().filter_map(|token| RefreshToken::parse(token)) {
            found.extend(self.sessions.session_of(&token.hash()).await?);
        }
        let mut ended = Vec::new();
        for (member, session) in found {
            if ended.contains(&session) {
                continue;
            }
            let until = self.policy.revoked_until(self.clock.now());
            let with_it = self.sessions.end(&member, session, everywhere, until).await?;
            self.announce(&with_it);
            ended.extend(with_it);
        }
        Ok(ended)
    }

    /// Removes sessions that are over at `now`, the time of a checked clock; says how many.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn prune(&self, now: DateTime<Utc>) -> Result<u64, StoreError> {
        self.sessions.prune(&self.policy, now).await
    }

    fn announce(&self, ended: &[SessionId]) {
        if !ended.is_empty() {
            self.revocations.appended();
        }
    }

    /// A hash with today's costs; a failure only means that the old one stays for now.
    async fn rehash(&self, password: &str) -> Option<PasswordHash> {
        let password = crate::domain::password::Password::parse("password", password).ok()?;
        match self.passwords.hash(&password).await {
            Ok(hash) => Some(hash),
            Err(error) => {
                tracing::warn!(%error, "a password keeps its outdated hash");
                None
            }
        }
    }

    fn pair(
        &self,
        member: &MemberId,
        session: SessionId,
        refresh_token: RefreshToken,
        times: &SessionTimes,
        now: DateTime<Utc>,
    ) -> Result<TokenPair, SessionError> {
        Ok(TokenPair {
            access: self.access_token(member, session, times, now)?,
            refresh_token,
            refresh_expires_at: self.policy.expires_at(times),
        })
    }

    fn access_token(
        &self,
        member: &MemberId,
        session: SessionId,
        times: &SessionTimes,
        now: DateTime<Utc>,
    ) -> Result<AccessToken, SessionError> {
        let expires_at = self.policy.access_expires_at(times.started_at, now);
        AccessToken::sign(&self.keys, member, session, now, expires_at).map_err(SessionError::Token)
    }
}

/// A session of a member as a token names it; `None` when it cannot be one of ours.
fn read(member: &str, session: &str) -> Option<(MemberId, SessionId)> {
    Some((MemberId::parse(member).ok()?, SessionId::parse(session)?))
}
