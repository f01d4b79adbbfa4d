-- Shared signals: ended sessions that a receiver elsewhere is to be told of, and events that came from elsewhere.
-- Microseconds since the epoch.

-- Up to where the log of ended sessions has been copied into the queue.
CREATE TABLE IF NOT EXISTS signal_cursor (
    id       TINYINT      NOT NULL PRIMARY KEY,
    log_id   VARCHAR(64)  NOT NULL,
    position BIGINT       NOT NULL
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

INSERT IGNORE INTO signal_cursor (id, log_id, position) VALUES (1, '', 0);

CREATE TABLE IF NOT EXISTS signal_queue (
    seq        BIGINT   NOT NULL AUTO_INCREMENT PRIMARY KEY,
    jti        CHAR(36) NOT NULL,
    session_id CHAR(36) NOT NULL,
    noted_at   BIGINT   NOT NULL,
    -- Not before this time; while a process sends it, that lies ahead.
    due_at     BIGINT   NOT NULL,
    attempts   INT      NOT NULL DEFAULT 0,
    KEY signal_queue_due (due_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- SHA-256 of the issuer and the id of events that have taken effect.
CREATE TABLE IF NOT EXISTS signals_received (
    digest     BINARY(32) NOT NULL PRIMARY KEY,
    kept_until BIGINT     NOT NULL,
    KEY signals_received_until (kept_until)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
