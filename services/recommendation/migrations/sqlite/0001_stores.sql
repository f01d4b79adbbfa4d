-- The schema of the service's file. Times are microseconds since the epoch.

-- The trend: scores as of one landmark, which moves on with all of them in one transaction.
CREATE TABLE trend_state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    landmark INTEGER NOT NULL,
    half_life_us INTEGER NOT NULL
) STRICT;
CREATE TABLE trend_scores (
    spot_id INTEGER PRIMARY KEY,
    score REAL NOT NULL
) STRICT;
CREATE INDEX trend_scores_by_score ON trend_scores (score DESC, spot_id);
-- Who counted for what, for as long as an event near it can come.
CREATE TABLE trend_counted (
    subject TEXT NOT NULL,
    spot_id INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    counted_at INTEGER NOT NULL,
    PRIMARY KEY (subject, spot_id, kind, counted_at)
) STRICT, WITHOUT ROWID;
CREATE INDEX trend_counted_by_time ON trend_counted (counted_at);
CREATE TABLE trend_seen (
    event_id BLOB PRIMARY KEY,
    kept_until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX trend_seen_by_time ON trend_seen (kept_until);
CREATE TABLE trend_forgotten (
    subject TEXT PRIMARY KEY,
    forgotten_at INTEGER NOT NULL,
    kept_until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Histories: one row per member and spot. A row that is not live is a bookmark taken back, kept so
-- that an older event cannot bring it back.
CREATE TABLE interactions (
    member TEXT NOT NULL,
    spot_id INTEGER NOT NULL,
    viewed_at INTEGER,
    bookmarked INTEGER NOT NULL,
    bookmark_changed_at INTEGER,
    live INTEGER NOT NULL,
    last_at INTEGER NOT NULL,
    PRIMARY KEY (member, spot_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX interactions_by_member ON interactions (member, last_at DESC, spot_id) WHERE live = 1;
CREATE INDEX interactions_by_spot ON interactions (spot_id, last_at DESC, member) WHERE live = 1;
CREATE INDEX interactions_dead ON interactions (last_at) WHERE live = 0;
-- A member as the model reads it: the number of live rows, and the latest spots as a JSON array.
CREATE TABLE members (
    member TEXT PRIMARY KEY,
    degree INTEGER NOT NULL,
    recent TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE spot_degrees (
    spot_id INTEGER PRIMARY KEY,
    degree INTEGER NOT NULL
) STRICT;
CREATE TABLE members_forgotten (
    member TEXT PRIMARY KEY,
    forgotten_at INTEGER NOT NULL,
    kept_until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The replica of core's spots, tags as a JSON array. A deleted one keeps its version.
CREATE TABLE spots (
    id INTEGER PRIMARY KEY,
    version INTEGER NOT NULL,
    deleted INTEGER NOT NULL,
    confirmed_at INTEGER NOT NULL,
    name TEXT NOT NULL,
    address TEXT NOT NULL,
    lat REAL NOT NULL,
    lng REAL NOT NULL,
    image_url TEXT,
    tags TEXT NOT NULL,
    tag_count INTEGER NOT NULL
) STRICT;
CREATE INDEX spots_by_place ON spots (lat, lng) WHERE deleted = 0;
CREATE INDEX spots_by_tag_count ON spots (tag_count DESC, id) WHERE deleted = 0;
CREATE TABLE core_log (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    log_id TEXT NOT NULL
) STRICT;

-- How far core's feed has been followed.
CREATE TABLE feed_cursors (
    queue TEXT PRIMARY KEY,
    log_id TEXT NOT NULL,
    seq INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
