//! Logging in, renewing and ending sessions.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use tourin_chassis::clock::SharedClock;

use super::StoreError;
use super::accounts::{AccountStore, Credentials};
use super::attempts::{Attempts, TooManyAttempts};
use super::client_source::ClientSource;
use super::devices::Devices;
use super::fair_queue::Requester;
use super::outcomes::Outcome;
pub use super::outcomes::Outcomes;
use super::passwords::{Comparison, HashingError, PasswordHash, Passwords};
use super::revocations::Revocations;
use super::session_store::{OpenSession, Opened, Rotation, SessionStore};
use super::signing::SigningKeys;
pub use super::tokens::{AccessToken, TokenPair};
use crate::domain::account::{Account, MemberId};
use crate::domain::session::{SessionPolicy, SessionTimes};
use crate::domain::token::{NoEntropy, RefreshToken, Salt, SessionId};

/// The result of a log-in.
#[derive(Debug)]
pub struct LoggedIn {
    /// Who.
    pub account: Account,
    /// The new session's tokens.
    pub tokens: TokenPair,
    /// Sessions that were ended to make room.
    pub ended: Vec<SessionId>,
    /// The cookie of a device that was not recognised.
    pub new_device: Option<String>,
}

/// Why a log-in or a renewal failed.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The id or the password is wrong. The error does not say which.
    #[error("the id or the password is wrong")]
    WrongCredentials,
    /// Too many wrong passwords for this account.
    #[error(transparent)]
    TooManyAttempts(#[from] TooManyAttempts),
    /// The refresh token is not valid.
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

fn outcome_of<T>(result: &Result<T, SessionError>) -> Outcome {
    match result {
        Ok(_) => Outcome::Succeeded,
        Err(SessionError::WrongCredentials | SessionError::Refused { ended: None }) => {
            Outcome::Refused
        }
        Err(SessionError::Refused { ended: Some(_) }) => Outcome::Reused,
        Err(SessionError::TooManyAttempts(_)) => Outcome::TooManyAttempts,
        Err(SessionError::Hashing(_) | SessionError::Store(_) | SessionError::Token(_)) => {
            Outcome::Failed
        }
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
    /// Recognises the devices and networks of members.
    pub devices: Devices,
    /// Signs access tokens.
    pub keys: Arc<SigningKeys>,
    /// Notified when sessions end.
    pub revocations: Arc<Revocations>,
    /// The lifetimes of tokens and sessions.
    pub policy: SessionPolicy,
    /// What time it is.
    pub clock: SharedClock,
    /// Counts log-ins and renewals.
    pub outcomes: Outcomes,
}

impl Sessions {
    /// Opens a session for a client that knows the password. Wrong passwords count for `source`, or for
    /// the device that one of the cookies in `devices` names.
    ///
    /// # Errors
    /// [`SessionError`]; an unknown id takes as long as a wrong password.
    pub async fn log_in(
        &self,
        id: &str,
        password: &str,
        source: &ClientSource,
        devices: &[&str],
    ) -> Result<LoggedIn, SessionError> {
        let outcome = self.try_log_in(id, password, source, devices).await;
        self.outcomes.count_log_in(outcome_of(&outcome));
        outcome
    }

    async fn try_log_in(
        &self,
        id: &str,
        password: &str,
        source: &ClientSource,
        devices: &[&str],
    ) -> Result<LoggedIn, SessionError> {
        let now = self.clock.now();
        let device = devices.iter().find_map(|cookie| self.devices.recognise(id, cookie, now));
        let counted = device.map(ClientSource::Device);
        let counted = counted.as_ref().unwrap_or(source);
        let attempt = self.attempts.charge(id, counted, self.devices.knows(id, source)).await?;
        let requester = Requester::urgent(source);
        let verified = self.verify(id, password, &requester).await;
        // It was right, or could not be judged.
        if !matches!(verified, Ok(None)) {
            self.attempts.refund(&attempt).await;
        }
        let Some((Credentials { account, hash }, outdated)) = verified? else {
            return Err(SessionError::WrongCredentials);
        };

        let rehashed = if outdated { self.rehash(password, &requester).await } else { None };
        let now = self.clock.now();
        let session = SessionId::new();
        let refresh_token = RefreshToken::random()?;
        // Signed first, so that a failure leaves no session without a token.
        let times = SessionTimes { started_at: now, renewed_at: now };
        let token = refresh_token.hash();
        let tokens = self.pair(&account.id, session, refresh_token, &times, now)?;
        let new_device = match device {
            Some(_) => None,
            None => Some(self.devices.issue(&account.id, now)?),
        };
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
                self.devices.remember(&account.id, source);
                Ok(LoggedIn { account, tokens, ended, new_device })
            }
            Opened::Stale => Err(SessionError::WrongCredentials),
        }
    }

    /// The account with this password, and whether its hash is outdated; `None` if there is none.
    async fn verify(
        &self,
        id: &str,
        password: &str,
        requester: &Requester,
    ) -> Result<Option<(Credentials, bool)>, SessionError> {
        let known = match MemberId::parse(id) {
            Ok(id) => self.accounts.credentials(&id).await?,
            Err(_) => None,
        };
        let stored = known.as_ref().map(|credentials| &credentials.hash);
        let comparison = self.passwords.compare(password, stored, requester).await?;
        Ok(match (known, comparison) {
            (Some(known), Comparison::Same { outdated }) => Some((known, outdated)),
            _ => None,
        })
    }

    /// Exchanges a refresh token for a new pair.
    ///
    /// # Errors
    /// [`SessionError::Refused`] with the session that was ended, if the token had been used before.
    pub async fn renew(&self, presented: &str) -> Result<TokenPair, SessionError> {
        let outcome = self.try_renew(presented).await;
        self.outcomes.count_renewal(outcome_of(&outcome));
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
                tracing::warn!(%session, "a used refresh token was reused; its session is ended");
                self.announce(&[session]);
                Err(SessionError::Refused { ended: Some(session) })
            }
            Rotation::Expired | Rotation::Unknown => Err(SessionError::Refused { ended: None }),
        }
    }

    /// The account of a session, if the session is open.
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

    /// A new access token of an open session; `None` if the session is not open. The call uses no
    /// token and can be repeated.
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

    /// A new access token of an open session with `refresh_token`, which the store knows already; `None`
    /// if the session is not open.
    ///
    /// # Errors
    /// [`SessionError::Store`], [`SessionError::Token`].
    pub async fn pair_with(
        &self,
        member: &MemberId,
        session: SessionId,
        refresh_token: RefreshToken,
    ) -> Result<Option<TokenPair>, SessionError> {
        let now = self.clock.now();
        match self.sessions.touch(member, session, &self.policy, now).await? {
            Some(times) => self.pair(member, session, refresh_token, &times, now).map(Some),
            None => Ok(None),
        }
    }

    /// Ends the session `named` and the sessions of the refresh tokens, mostly the same one; with
    /// `everywhere` also the other sessions of their members. Returns the ended sessions, including
    /// those that had ended before. Unknown sessions and tokens are ignored.
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

    /// Ends all sessions of a member; returns them. An unknown member has none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn end_all(&self, member: &MemberId) -> Result<Vec<SessionId>, StoreError> {
        let ended = self.sessions.end_all(member, self.revoked_until()).await?;
        self.announce(&ended);
        Ok(ended)
    }

    /// Removes sessions that have expired at `now`, the time of a checked clock. Returns their number.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn prune(&self, now: DateTime<Utc>) -> Result<u64, StoreError> {
        self.sessions.prune(&self.policy, now).await
    }

    /// Until when a gateway must remember a session that ends now.
    pub fn revoked_until(&self) -> DateTime<Utc> {
        self.policy.revoked_until(self.clock.now())
    }

    fn announce(&self, ended: &[SessionId]) {
        if !ended.is_empty() {
            self.revocations.appended();
        }
    }

    /// A hash with the current costs. On failure the account keeps the old hash for now.
    async fn rehash(&self, password: &str, requester: &Requester) -> Option<PasswordHash> {
        let password = crate::domain::password::Password::parse("password", password).ok()?;
        match self.passwords.hash(&password, requester).await {
            Ok(hash) => Some(hash),
            Err(error) => {
                tracing::warn!(%error, "an outdated password hash was not replaced");
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

/// The member and the session that a token names; `None` if one of them is malformed.
fn read(member: &str, session: &str) -> Option<(MemberId, SessionId)> {
    Some((MemberId::parse(member).ok()?, SessionId::parse(session)?))
}
