-- Accounts, sessions, refresh tokens, revocations. Times are microseconds since the epoch.
-- Every statement bears being run again: a step that broke off is run again as a whole.

CREATE TABLE IF NOT EXISTS members (
    -- ASCII letters and digits, compared with case.
    id            VARCHAR(32) NOT NULL PRIMARY KEY,
    -- The id in lower case: no two may differ in case only.
    id_folded     VARCHAR(32) NOT NULL,
    name          VARCHAR(100) NOT NULL,
    email         VARCHAR(320) NOT NULL,
    password_hash VARCHAR(512) NOT NULL,
    created_at    BIGINT       NOT NULL,
    updated_at    BIGINT       NOT NULL,
    -- Sessions that are kept outside of this database and carry a lower one are over.
    sessions_epoch BIGINT      NOT NULL DEFAULT 0,
    UNIQUE KEY members_id_folded (id_folded)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS sessions (
    id         VARCHAR(64) NOT NULL PRIMARY KEY,
    member_id  VARCHAR(32) NOT NULL,
    started_at BIGINT      NOT NULL,
    renewed_at BIGINT      NOT NULL,
    -- Of the current refresh token; the session's first has 0.
    generation BIGINT      NOT NULL,
    KEY sessions_by_member (member_id, started_at),
    KEY sessions_by_start (started_at),
    KEY sessions_by_renewal (renewed_at),
    CONSTRAINT sessions_member FOREIGN KEY (member_id) REFERENCES members (id) ON DELETE CASCADE
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- The current refresh token of each session and the used ones before it, as SHA-256.
CREATE TABLE IF NOT EXISTS refresh_tokens (
    hash       BINARY(32)    NOT NULL PRIMARY KEY,
    session_id VARCHAR(64) NOT NULL,
    generation BIGINT        NOT NULL,
    used_at    BIGINT        NULL,
    -- Derives the successor from the used token while the grace lasts; NULL otherwise.
    salt       VARBINARY(64) NULL,
    -- As used_at while there is a salt; NULL otherwise.
    salted_at  BIGINT        NULL,
    UNIQUE KEY refresh_tokens_by_session (session_id, generation),
    KEY refresh_tokens_in_grace (salted_at),
    CONSTRAINT refresh_tokens_session FOREIGN KEY (session_id) REFERENCES sessions (id) ON DELETE CASCADE
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Sessions ended before their access tokens expire. Gateways follow it by seq, which never repeats.
CREATE TABLE IF NOT EXISTS revocations (
    seq        BIGINT      NOT NULL AUTO_INCREMENT PRIMARY KEY,
    session_id VARCHAR(64) NOT NULL,
    until      BIGINT      NOT NULL,
    KEY revocations_by_expiry (until)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- One row: the log's name. Whoever appends to the log locks it until his commit, so that entries
-- appear in the order of their numbers and a follower who keeps his place misses none.
CREATE TABLE IF NOT EXISTS revocation_log (
    id     TINYINT  NOT NULL PRIMARY KEY,
    log_id CHAR(32) NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

INSERT IGNORE INTO revocation_log (id, log_id) VALUES (1, REPLACE(UUID(), '-', ''));

-- Where sessions are kept outside of this database: those of a member that are to be ended there
-- because the account has changed or is gone. A row is removed when that is done.
CREATE TABLE IF NOT EXISTS session_endings (
    id            BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
    member_id     VARCHAR(32) NOT NULL,
    -- Below it they are over.
    epoch         BIGINT      NOT NULL,
    kept_session  VARCHAR(64) NULL,
    noted_at      BIGINT      NOT NULL,
    revoked_until BIGINT      NOT NULL,
    KEY session_endings_by_member (member_id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
