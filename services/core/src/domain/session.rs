//! The lifetimes of sessions, and the judgement of presented refresh tokens.
//!
//! A session is a family of refresh tokens, one after the other. Exactly one is current. A store
//! loads the rows, calls [`SessionPolicy::judge`], and applies the verdict in the same transaction.

use chrono::{DateTime, TimeDelta, Utc};

/// The bounds of sessions. Defaults: see [`SessionPolicy::default`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionPolicy {
    /// Lifetime of an access token.
    pub access_token: TimeDelta,
    /// Lifetime of a session, however often it is renewed.
    pub absolute: TimeDelta,
    /// Lifetime of a session that is not renewed.
    pub idle: TimeDelta,
    /// How long a used refresh token still leads to its successor.
    pub grace: TimeDelta,
    /// Sessions that a member may have at once; opening one more ends the oldest.
    pub per_member: usize,
    /// How many used refresh tokens of a session are kept to detect their reuse. Older ones are
    /// treated as unknown.
    pub remembered_tokens: u32,
}

impl Default for SessionPolicy {
    /// 10 minutes, 30 days, 14 days, 10 seconds, 50 sessions, 1,000 tokens.
    fn default() -> Self {
        Self {
            access_token: TimeDelta::minutes(10),
            absolute: TimeDelta::days(30),
            idle: TimeDelta::days(14),
            grace: TimeDelta::seconds(10),
            per_member: 50,
            remembered_tokens: 1_000,
        }
    }
}

/// The greatest difference between the clocks of the mesh's machines. A revocation is kept that much
/// longer than the last access token of its session.
const CLOCK_LEEWAY: TimeDelta = TimeDelta::seconds(60);

/// The times of a session that its bounds depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionTimes {
    /// When the member logged in.
    pub started_at: DateTime<Utc>,
    /// When a refresh token or an access token was last issued.
    pub renewed_at: DateTime<Utc>,
}

/// The state of a presented refresh token in its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenState {
    /// The current token.
    Current,
    /// The token whose successor is current.
    JustUsed {
        /// When it was used.
        at: DateTime<Utc>,
    },
    /// A token whose successor has been used too; an honest client does not present it.
    UsedBefore,
}

impl TokenState {
    /// The state by the stored facts: when the token was used, whether its successor is current, and
    /// whether the salt that derives the successor is still stored.
    pub fn of(used_at: Option<DateTime<Utc>>, is_successor_current: bool, has_salt: bool) -> Self {
        match used_at {
            None => Self::Current,
            Some(at) if is_successor_current && has_salt => Self::JustUsed { at },
            Some(_) => Self::UsedBefore,
        }
    }
}

/// What to do with a presented refresh token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Mark it used and issue its successor.
    Rotate,
    /// The race of two tabs: return the same successor again.
    Repeat,
    /// A used token was presented again, so it was copied. End the session.
    Reuse,
    /// The session has expired.
    Expired,
}

impl SessionPolicy {
    /// When a session ends unless it is renewed.
    pub fn expires_at(&self, times: &SessionTimes) -> DateTime<Utc> {
        (times.started_at + self.absolute).min(times.renewed_at + self.idle)
    }

    /// When an access token issued at `now` expires: never later than the session's absolute end.
    pub fn access_expires_at(
        &self,
        started_at: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> DateTime<Utc> {
        (now + self.access_token).min(started_at + self.absolute)
    }

    /// Until when gateways must remember a session that was ended at `now`, if its access tokens were
    /// issued under this policy: until all of them have expired by every machine's clock. The grace is
    /// included, because a repeated rotation issues an access token and changes nothing in the store.
    ///
    /// A store keeps the latest such time per session as its tokens are issued, and revokes until the
    /// later of that and this. So a shorter `access_token` does not shorten the revocation of tokens
    /// that were issued before.
    pub fn revoked_until(&self, now: DateTime<Utc>) -> DateTime<Utc> {
        now + self.access_token + self.grace + CLOCK_LEEWAY
    }

    /// Judges a refresh token presented at `now`.
    pub fn judge(&self, times: &SessionTimes, state: TokenState, now: DateTime<Utc>) -> Verdict {
        if now >= self.expires_at(times) {
            return Verdict::Expired;
        }
        match state {
            TokenState::Current => Verdict::Rotate,
            TokenState::JustUsed { at } if now - at < self.grace => Verdict::Repeat,
            TokenState::JustUsed { .. } | TokenState::UsedBefore => Verdict::Reuse,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    const DAY: i64 = 86_400;

    #[test]
    fn an_idle_session_ends_before_its_absolute_lifetime() {
        let policy = SessionPolicy::default();
        let fresh = SessionTimes { started_at: at(0), renewed_at: at(0) };
        assert_eq!(policy.expires_at(&fresh), at(14 * DAY));
        let renewed = SessionTimes { started_at: at(0), renewed_at: at(20 * DAY) };
        assert_eq!(policy.expires_at(&renewed), at(30 * DAY));
    }

    #[test]
    fn an_access_token_does_not_outlive_its_session() {
        let policy = SessionPolicy::default();
        assert_eq!(policy.access_expires_at(at(0), at(5)), at(605));
        assert_eq!(policy.access_expires_at(at(0), at(30 * DAY - 5)), at(30 * DAY));
    }

    #[test]
    fn the_grace_ends_on_the_dot() {
        let policy = SessionPolicy::default();
        let times = SessionTimes { started_at: at(0), renewed_at: at(100) };
        let used = TokenState::JustUsed { at: at(100) };
        assert_eq!(policy.judge(&times, used, at(109)), Verdict::Repeat);
        assert_eq!(policy.judge(&times, used, at(110)), Verdict::Reuse);
        let none = SessionPolicy { grace: TimeDelta::zero(), ..policy };
        assert_eq!(none.judge(&times, used, at(100)), Verdict::Reuse);
    }

    proptest! {
        #[test]
        fn nothing_is_issued_after_the_end_and_only_the_current_token_rotates(
            started in 0..100 * DAY, renewed_after in 0..40 * DAY, used_before in 0..60_i64,
            now_after in 0..40 * DAY, place in 0..3,
        ) {
            let policy = SessionPolicy::default();
            let times =
                SessionTimes { started_at: at(started), renewed_at: at(started + renewed_after) };
            let now = at(started + renewed_after + now_after);
            let state = match place {
                0 => TokenState::Current,
                1 => TokenState::JustUsed { at: now - TimeDelta::seconds(used_before) },
                _ => TokenState::UsedBefore,
            };
            let verdict = policy.judge(&times, state, now);
            let over = now - times.started_at >= policy.absolute
                || now - times.renewed_at >= policy.idle;
            prop_assert_eq!(verdict == Verdict::Expired, over);
            prop_assert_eq!(verdict == Verdict::Rotate, !over && state == TokenState::Current);
            // A revocation outlasts every access token that was issued before it.
            prop_assert!(policy.revoked_until(now) > policy.access_expires_at(times.started_at, now));
        }
    }
}
