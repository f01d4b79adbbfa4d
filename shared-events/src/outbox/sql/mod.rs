//! The outbox's SQL, once for all engines.
//!
//! `store.rs`, `operators.rs`, `append.rs` and `rows.rs` in this folder are compiled for each engine, as modules of
//! [`sqlite`](super::sqlite) and of [`mysql`](super::mysql); their imports from `super` are that engine's. They contain
//! the common statements. The parts that differ are below, side by side. The ownership of shards
//! ([`claims`](super::mysql)) is separate for each engine, because their locks differ.

/// Declares statements, and parts of statements, as constants of each engine.
macro_rules! statements {
    ($($(#[$doc:meta])* $name:ident { sqlite: $sqlite:expr, mysql: $mysql:expr $(,)? })*) => {
        pub(super) mod sqlite {
            $($(#[$doc])* pub(in crate::outbox) const $name: &str = $sqlite;)*
        }
        pub(super) mod mysql {
            $($(#[$doc])* pub(in crate::outbox) const $name: &str = $mysql;)*
        }
    };
}

/// The numbers of a JSON array as a table `w` of one column `v`: one bound value, so the statement does not depend on
/// the list's length. Join it with STRAIGHT_JOIN, so that the list is read first.
macro_rules! numbers {
    () => {
        "JSON_TABLE(?, '$[*]' COLUMNS (v BIGINT PATH '$')) AS w"
    };
}
pub(super) use numbers;

statements! {
    /// The events that wait for a relay. Uses an index that is small when few events wait. Without the hint SQLite
    /// would scan the complete table.
    WAITING {
        sqlite: "outbox INDEXED BY outbox_pending WHERE published_at IS NULL AND rejected_at IS NULL",
        mysql: "outbox FORCE INDEX (outbox_waiting) WHERE published_at IS NULL AND rejected_at IS NULL",
    }
    /// The outbox's dead letters.
    REJECTED {
        sqlite: "outbox INDEXED BY outbox_rejected WHERE rejected_at IS NOT NULL",
        mysql: "outbox FORCE INDEX (outbox_waiting) WHERE published_at IS NULL AND rejected_at > 0",
    }
    /// The events that the bus confirmed, by number.
    PUBLISHED {
        sqlite: "outbox WHERE published_at IS NOT NULL",
        mysql: "outbox FORCE INDEX (PRIMARY) WHERE published_at IS NOT NULL",
    }
    /// Events that were confirmed up to a time, the earliest first.
    PUBLISHED_UNTIL {
        sqlite: "outbox INDEXED BY outbox_published WHERE published_at IS NOT NULL AND published_at <= ?
                 ORDER BY published_at",
        mysql: "outbox FORCE INDEX (outbox_waiting) WHERE published_at <= ? ORDER BY published_at, rejected_at, seq",
    }
    /// The rows of these numbers.
    LISTED {
        sqlite: "outbox WHERE seq IN (SELECT value FROM json_each(?))",
        mysql: concat!(numbers!(), " STRAIGHT_JOIN outbox ON seq = w.v"),
    }
    /// Locks rows of [`LISTED`] that are read to be changed. On SQLite the transaction has the only writer. MySQL refuses
    /// to lock the list (error 3569), MariaDB cannot name the table to be locked.
    FOR_UPDATE { sqlite: "", mysql: " FOR UPDATE /*!80000 OF outbox */" }
    /// Marks rows as confirmed. Numbers, time.
    MARK {
        sqlite: "UPDATE outbox SET published_at = ?2, rejected_at = NULL
                 WHERE seq IN (SELECT value FROM json_each(?1)) AND published_at IS NULL",
        mysql: concat!(
            "UPDATE ", numbers!(), " STRAIGHT_JOIN outbox ON seq = w.v
             SET published_at = ?, rejected_at = NULL WHERE published_at IS NULL"
        ),
    }
    /// Counts attempts. A list of `[number, reason, time at which it was dead-lettered or 0]`.
    REFUSE {
        sqlite: "UPDATE outbox SET attempts = attempts + 1, last_error = w.value ->> 1, rejected_at = nullif(w.value ->> 2, 0)
                 FROM json_each(?) AS w WHERE seq = w.value ->> 0 AND published_at IS NULL",
        mysql: "UPDATE JSON_TABLE(?, '$[*]' COLUMNS (v BIGINT PATH '$[0]', reason TEXT PATH '$[1]', at BIGINT PATH '$[2]')) AS w
                STRAIGHT_JOIN outbox ON seq = w.v
                SET attempts = attempts + 1, last_error = w.reason, rejected_at = NULLIF(w.at, 0)
                WHERE published_at IS NULL",
    }
    /// Sets rows to wait again.
    REPLAY {
        sqlite: "UPDATE outbox SET published_at = NULL, rejected_at = NULL, attempts = 0, last_error = NULL
                 WHERE seq IN (SELECT value FROM json_each(?))",
        mysql: concat!(
            "UPDATE ", numbers!(), " STRAIGHT_JOIN outbox ON seq = w.v
             SET published_at = NULL, rejected_at = NULL, attempts = 0, last_error = NULL"
        ),
    }
    /// Deletes rows.
    DELETE {
        sqlite: "DELETE FROM outbox WHERE seq IN (SELECT value FROM json_each(?))",
        mysql: concat!("DELETE outbox FROM ", numbers!(), " STRAIGHT_JOIN outbox ON seq = w.v"),
    }
    /// Whether a row belongs to one of these events: a list of ids.
    IS_OF_EVENTS {
        sqlite: "event_id IN (SELECT value FROM json_each(?))",
        mysql: "JSON_CONTAINS(?, JSON_QUOTE(event_id))",
    }
    /// The highest number so far.
    LAST {
        sqlite: "SELECT seq FROM sqlite_sequence WHERE name = 'outbox'",
        mysql: "SELECT MAX(seq) FROM outbox",
    }
    /// The table whose row says whether appending is refused.
    GATE { sqlite: "outbox_state", mysql: "outbox_gate" }
    /// Locks the gate, shared, until the commit. An exclusive lock on it shows a reader that all appending transactions
    /// have ended ([`Watermark`](super::super::mysql)). SQLite has one writer.
    SHARED { sqlite: "", mysql: " LOCK IN SHARE MODE" }
}
