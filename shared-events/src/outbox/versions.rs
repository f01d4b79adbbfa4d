//! Versions of events: which of two changes of one thing is the later one.
//!
//! A clock cannot decide that, because it may be set back between the two. The outbox can: its numbers follow the order
//! of commits of dependent changes. So an event leaves with its number, added to a base, as the field `version` of its
//! data. Payloads with their own version (spots) keep it.
//!
//! The base is the time at which the outbox got its versions, in microseconds since the epoch. It never changes. It
//! makes the versions of a new database higher than those of the one before. After a copy was restored an operator
//! raises it (`docs/operations.md`). Rows older than the versions leave without one: an event with a version is later
//! than one without.

use serde_json::Value;

use crate::envelope::VERSION;

/// How the rows of one outbox get their versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Versions {
    /// Added to a row's number.
    base: i64,
    /// Rows up to this number are older than versions and have none.
    unversioned: i64,
}

/// The columns of [`SELECT`].
impl From<(i64, i64)> for Versions {
    fn from((base, unversioned): (i64, i64)) -> Self {
        Self { base, unversioned }
    }
}

/// The outbox row with both values, in either engine.
pub(super) const SELECT: &str = "SELECT base, unversioned FROM outbox_versions WHERE id = 1";

impl Versions {
    /// Adds the version to the data of the row with this number.
    pub(super) fn stamp(self, seq: i64, data: &mut Value) {
        if seq > self.unversioned
            && let Value::Object(fields) = data
        {
            fields.entry(VERSION).or_insert_with(|| self.base.saturating_add(seq).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stamped(seq: i64, mut data: Value) -> Value {
        Versions { base: 1_000, unversioned: 7 }.stamp(seq, &mut data);
        data
    }

    #[test]
    fn later_rows_have_higher_versions_and_rows_from_before_have_none() {
        assert_eq!(stamped(7, json!({"user_id": "a"})), json!({"user_id": "a"}));
        assert_eq!(stamped(8, json!({"user_id": "a"})), json!({"user_id": "a", "version": 1_008}));
        assert_eq!(stamped(9, json!({})), json!({"version": 1_009}));
    }

    #[test]
    fn a_version_of_the_payload_s_own_is_kept() {
        assert_eq!(stamped(9, json!({"version": 3})), json!({"version": 3}));
    }
}
