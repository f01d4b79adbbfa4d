-- Shared signals: ended sessions that a receiver elsewhere is to be told of, and events that came from elsewhere.
-- Microseconds since the epoch.

-- Up to where the log of ended sessions has been copied into the queue.
CREATE TABLE signal_cursor (
    id       INTEGER NOT NULL PRIMARY KEY,
    log_id   TEXT    NOT NULL,
    position INTEGER NOT NULL
) STRICT;

INSERT INTO signal_cursor (id, log_id, position) VALUES (1, '', 0);

CREATE TABLE signal_queue (
    seq        INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    jti        TEXT    NOT NULL,
    session_id TEXT    NOT NULL,
    noted_at   INTEGER NOT NULL,
    -- Not before this time; while a process sends it, that lies ahead.
    due_at     INTEGER NOT NULL,
    attempts   INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX signal_queue_due ON signal_queue (due_at);

-- SHA-256 of the issuer and the id of events that have taken effect.
CREATE TABLE signals_received (
    digest     BLOB    NOT NULL PRIMARY KEY,
    kept_until INTEGER NOT NULL
) STRICT;

CREATE INDEX signals_received_until ON signals_received (kept_until);
