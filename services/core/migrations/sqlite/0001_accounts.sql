-- Accounts, sessions, refresh tokens, revocations. Times are microseconds since the epoch.

CREATE TABLE members (
    id            TEXT    NOT NULL PRIMARY KEY,
    name          TEXT    NOT NULL,
    email         TEXT    NOT NULL,
    password_hash TEXT    NOT NULL,
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Ids are compared with case, but no two may differ in case only.
CREATE UNIQUE INDEX members_id_nocase ON members (id COLLATE NOCASE);

CREATE TABLE sessions (
    id         TEXT    NOT NULL PRIMARY KEY,
    member_id  TEXT    NOT NULL REFERENCES members (id) ON DELETE CASCADE,
    started_at INTEGER NOT NULL,
    renewed_at INTEGER NOT NULL,
    -- Of the current refresh token; the session's first has 0.
    generation INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX sessions_by_member ON sessions (member_id, started_at);
CREATE INDEX sessions_by_start ON sessions (started_at);
CREATE INDEX sessions_by_renewal ON sessions (renewed_at);

-- The current refresh token of each session and the used ones before it, as SHA-256.
CREATE TABLE refresh_tokens (
    hash       BLOB    NOT NULL PRIMARY KEY,
    session_id TEXT    NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    generation INTEGER NOT NULL,
    used_at    INTEGER,
    -- Derives the successor from the used token while the grace lasts; NULL otherwise.
    salt       BLOB
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX refresh_tokens_by_session ON refresh_tokens (session_id, generation);
CREATE INDEX refresh_tokens_in_grace ON refresh_tokens (used_at) WHERE salt IS NOT NULL;

-- Sessions ended before their access tokens expire. Gateways follow it by seq, which never repeats.
CREATE TABLE revocations (
    seq        INTEGER PRIMARY KEY AUTOINCREMENT,
    session_id TEXT    NOT NULL,
    until      INTEGER NOT NULL
) STRICT;

CREATE INDEX revocations_by_expiry ON revocations (until);

-- The identity of the revocation log: a follower that sees another one begins again.
CREATE TABLE revocation_log (
    id TEXT NOT NULL PRIMARY KEY
) STRICT, WITHOUT ROWID;

INSERT INTO revocation_log (id) VALUES (lower(hex(randomblob(16))));
