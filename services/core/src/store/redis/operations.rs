//! The operations on sessions in Redis, one script each.

use chrono::{DateTime, TimeDelta, Utc};

use super::{RedisSessions, malformed};
use crate::app::StoreError;
use crate::app::session_store::{OpenSession, Rotation};
use crate::domain::account::MemberId;
use crate::domain::session::{SessionPolicy, SessionTimes};
use crate::domain::token::{Salt, SessionId, TokenHash};
use crate::store::mysql::PendingRevocation;

/// How long a raised epoch is kept: longer than any log-in that read the account before can take.
const EPOCH_MS: i64 = 24 * 3_600 * 1_000;

/// The outcome of opening a session.
pub(super) enum OpenedAt {
    /// The session is open; these sessions above the limit were ended.
    Open(Vec<SessionId>),
    /// The session's epoch is too low: Redis knows this higher one.
    Behind(i64),
}

impl RedisSessions {
    pub(super) async fn open(
        &self,
        open: &OpenSession,
        epoch: i64,
        policy: &SessionPolicy,
    ) -> Result<OpenedAt, StoreError> {
        let times = SessionTimes { started_at: open.now, renewed_at: open.now };
        let mut call = self.call(&self.scripts.open);
        call.arg(open.member.as_str()).arg(open.session.to_string());
        call.arg(open.token.0.as_slice()).arg(open.now.timestamp_micros()).arg(epoch);
        call.arg(policy.per_member.max(1));
        call.arg(millis(policy.expires_at(&times) - open.now)).arg(millis(policy.absolute));
        call.arg(policy.revoked_until(open.now).timestamp_micros());
        let outcome: Vec<String> = self.run("open", &call).await?;
        match outcome.split_first() {
            Some((word, ended)) if word == "open" => Ok(OpenedAt::Open(sessions(ended)?)),
            Some((word, [known])) if word == "behind" => {
                known.parse().map(OpenedAt::Behind).map_err(|_| malformed("an epoch"))
            }
            _ => Err(malformed("the answer to an opening")),
        }
    }

    pub(super) async fn rotate(
        &self,
        presented: &TokenHash,
        (salt, successor): (&Salt, &TokenHash),
        policy: &SessionPolicy,
        now: DateTime<Utc>,
    ) -> Result<Rotation, StoreError> {
        let mut call = self.call(&self.scripts.rotate);
        call.arg(presented.0.as_slice()).arg(successor.0.as_slice()).arg(salt.0.as_slice());
        call.arg(now.timestamp_micros()).arg(micros(policy.absolute)).arg(micros(policy.idle));
        call.arg(micros(policy.grace)).arg(policy.remembered_tokens.max(1));
        call.arg(policy.revoked_until(now).timestamp_micros());
        let outcome: Vec<Vec<u8>> = self.run("rotate", &call).await?;
        let outcome: Vec<&[u8]> = outcome.iter().map(Vec::as_slice).collect();
        match *outcome.as_slice() {
            [b"unknown"] => Ok(Rotation::Unknown),
            [b"expired"] => Ok(Rotation::Expired),
            [b"reused", id] => Ok(Rotation::Reused { session: session(id)? }),
            [b"rotated", owner, id, started] => Ok(Rotation::Rotated {
                member: member(owner)?,
                session: session(id)?,
                times: SessionTimes { started_at: time(started)?, renewed_at: now },
            }),
            [b"repeated", owner, id, started, renewed, salt] => Ok(Rotation::Repeated {
                member: member(owner)?,
                session: session(id)?,
                times: SessionTimes { started_at: time(started)?, renewed_at: time(renewed)? },
                salt: Salt(salt.try_into().map_err(|_| malformed("a salt"))?),
            }),
            _ => Err(malformed("the answer to a rotation")),
        }
    }

    pub(super) async fn touch(
        &self,
        owner: &MemberId,
        id: SessionId,
        policy: &SessionPolicy,
        now: DateTime<Utc>,
    ) -> Result<Option<SessionTimes>, StoreError> {
        let mut call = self.call(&self.scripts.touch);
        call.arg(owner.as_str()).arg(id.to_string()).arg(now.timestamp_micros());
        call.arg(micros(policy.absolute)).arg(micros(policy.idle));
        call.arg(policy.revoked_until(now).timestamp_micros());
        let outcome: Vec<Vec<u8>> = self.run("touch", &call).await?;
        match outcome.as_slice() {
            [] => Ok(None),
            [started, renewed] => {
                let (started_at, renewed_at) = (time(started)?, time(renewed)?);
                Ok(Some(SessionTimes { started_at, renewed_at }))
            }
            _ => Err(malformed("the answer to a use")),
        }
    }

    pub(super) async fn session_of(
        &self,
        presented: &TokenHash,
    ) -> Result<Option<(MemberId, SessionId)>, StoreError> {
        let mut call = self.call(&self.scripts.session_of);
        call.arg(presented.0.as_slice());
        let outcome: Vec<Vec<u8>> = self.run("select", &call).await?;
        match outcome.as_slice() {
            [] => Ok(None),
            [owner, id] => Ok(Some((member(owner)?, session(id)?))),
            _ => Err(malformed("a refresh token's session")),
        }
    }

    /// The times of a session of the member, if it exists.
    pub(super) async fn session(
        &self,
        owner: &MemberId,
        id: SessionId,
    ) -> Result<Option<SessionTimes>, StoreError> {
        let mut look = redis::cmd("HMGET");
        look.arg(format!("{}session:{id}", self.keys.base));
        look.arg("member").arg("started").arg("renewed");
        let (of, started, renewed): (Option<String>, Option<String>, Option<String>) =
            self.ask("select", &look).await?;
        match (of, started, renewed) {
            (Some(of), Some(started), Some(renewed)) if of == owner.as_str() => {
                let (started, renewed) = (time(started.as_bytes())?, time(renewed.as_bytes())?);
                Ok(Some(SessionTimes { started_at: started, renewed_at: renewed }))
            }
            _ => Ok(None),
        }
    }

    pub(super) async fn end(
        &self,
        owner: &MemberId,
        id: SessionId,
        everywhere: bool,
        revoked_until: DateTime<Utc>,
    ) -> Result<Vec<SessionId>, StoreError> {
        let mut call = self.call(&self.scripts.end);
        call.arg(owner.as_str()).arg(id.to_string()).arg(u8::from(everywhere));
        call.arg(revoked_until.timestamp_micros());
        let ended: Vec<String> = self.run("end", &call).await?;
        sessions(&ended)
    }

    pub(super) async fn end_all(
        &self,
        owner: &MemberId,
        revoked_until: DateTime<Utc>,
    ) -> Result<Vec<SessionId>, StoreError> {
        let mut call = self.call(&self.scripts.end_all);
        call.arg(owner.as_str()).arg(revoked_until.timestamp_micros());
        let ended: Vec<String> = self.run("end all", &call).await?;
        sessions(&ended)
    }

    /// Ends the sessions of a changed account; returns the ended ones.
    pub(super) async fn settle(
        &self,
        pending: &PendingRevocation,
        revoked_until: DateTime<Utc>,
    ) -> Result<Vec<SessionId>, StoreError> {
        let keep = pending.keep.map(|keep| keep.session.to_string()).unwrap_or_default();
        let token = pending.keep.and_then(|keep| keep.token);
        let mut call = self.call(&self.scripts.settle);
        call.arg(pending.member.as_str()).arg(pending.epoch).arg(keep);
        call.arg(revoked_until.timestamp_micros()).arg(EPOCH_MS);
        call.arg(token.as_ref().map_or(&[][..], |token| &token.0[..]));
        let ended: Vec<String> = self.run("settle", &call).await?;
        sessions(&ended)
    }
}

fn sessions(ids: &[String]) -> Result<Vec<SessionId>, StoreError> {
    ids.iter().map(|id| session(id.as_bytes())).collect()
}

fn session(id: &[u8]) -> Result<SessionId, StoreError> {
    text(id).and_then(SessionId::parse).ok_or_else(|| malformed("a session's id"))
}

fn member(id: &[u8]) -> Result<MemberId, StoreError> {
    let id = text(id).ok_or_else(|| malformed("a member's id"))?;
    Ok(MemberId::trusted(id.to_owned()))
}

pub(super) fn time(micros: &[u8]) -> Result<DateTime<Utc>, StoreError> {
    text(micros)
        .and_then(|micros| micros.parse().ok())
        .and_then(DateTime::from_timestamp_micros)
        .ok_or_else(|| malformed("a time"))
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// Milliseconds, at least one.
fn millis(span: TimeDelta) -> i64 {
    span.num_milliseconds().max(1)
}

/// Microseconds, saturating.
fn micros(span: TimeDelta) -> i64 {
    span.num_microseconds().unwrap_or(i64::MAX)
}
