-- Which of two changes is the later one is said by their versions. A row of before has 0, which is below every version; among
-- such rows and events without a version the times go on to decide.
ALTER TABLE interactions ADD COLUMN bookmark_version INTEGER NOT NULL DEFAULT 0;
ALTER TABLE members_forgotten ADD COLUMN forgotten_version INTEGER NOT NULL DEFAULT 0;
ALTER TABLE trend_forgotten ADD COLUMN forgotten_version INTEGER NOT NULL DEFAULT 0;
ALTER TABLE trend_counted ADD COLUMN version INTEGER NOT NULL DEFAULT 0;

-- The time that the trend has come to. What was counted by a clock that was ahead is the latest that was counted.
ALTER TABLE trend_state ADD COLUMN seen_at INTEGER;
UPDATE trend_state SET seen_at = max(landmark, coalesce((SELECT max(counted_at) FROM trend_counted), landmark));
-- One row after the clock has jumped ahead, until it is confirmed by going on: when that was, and the landmark of before.
CREATE TABLE trend_jump (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    jumped_at INTEGER NOT NULL,
    landmark INTEGER NOT NULL
) STRICT;
-- The scores of before, and what was counted since without any decay: the trend as it is, should the clock go back.
CREATE TABLE trend_scores_before (
    spot_id INTEGER PRIMARY KEY,
    score REAL NOT NULL
) STRICT;
CREATE TABLE trend_scores_since (
    spot_id INTEGER PRIMARY KEY,
    weight REAL NOT NULL
) STRICT;

-- When what is old was deleted last, by kind: what the next pass compares the clock with.
CREATE TABLE prune_passes (
    what TEXT PRIMARY KEY,
    passed_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
