-- When what is old was deleted last, by kind: what the next pass compares the clock with. Microseconds since the epoch.
CREATE TABLE prune_passes (
    what      TEXT    NOT NULL PRIMARY KEY,
    passed_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
