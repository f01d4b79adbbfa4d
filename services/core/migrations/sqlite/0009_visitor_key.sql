-- The key of the day for visitors' pseudonyms: one row, which each day's key overwrites.
CREATE TABLE visitor_key (
    id     INTEGER NOT NULL PRIMARY KEY,
    -- Days since the epoch.
    day    INTEGER NOT NULL,
    secret BLOB    NOT NULL
) STRICT;

INSERT INTO visitor_key (id, day, secret) VALUES (1, 0, zeroblob(32));
