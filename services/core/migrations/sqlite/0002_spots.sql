-- Tour spots and their search index, bookmarks, reviews, likes. Times are microseconds since the
-- epoch.

CREATE TABLE tour_spots (
    -- Dense, given in the order of arrival, never shown: the spot's place in the search index.
    ord          INTEGER NOT NULL PRIMARY KEY,
    id           INTEGER NOT NULL UNIQUE,
    version      INTEGER NOT NULL,
    -- NFC. Compared byte by byte, which for UTF-8 is the order of code points.
    name         TEXT    NOT NULL,
    address      TEXT    NOT NULL,
    lat          REAL    NOT NULL,
    lng          REAL    NOT NULL,
    -- The Z-order code of lat and lng.
    cell         INTEGER NOT NULL,
    -- A bit per tag.
    tags         INTEGER NOT NULL,
    image_url    TEXT,
    description  TEXT,
    phone_number TEXT
) STRICT;

-- Pages of the list.
CREATE INDEX tour_spots_by_name ON tour_spots (name, id);
-- The map; lat and lng so that no row is read to leave it out.
CREATE INDEX tour_spots_by_cell ON tour_spots (cell, id, lat, lng);

-- What a query is compared with: name and address, folded.
CREATE TABLE spot_texts (
    ord     INTEGER NOT NULL PRIMARY KEY,
    name    TEXT    NOT NULL,
    address TEXT    NOT NULL
) STRICT;

-- Which spots have a gram. The spots are taken in chunks of 4,096 by ord, and a row has all spots
-- of one chunk with one gram: importing neighbours writes neighbouring rows, and looking a gram up
-- is one probe per chunk.
CREATE TABLE spot_grams (
    chunk INTEGER NOT NULL,
    -- A character's code point, or two neighbours' (the first above 21 bits of the second);
    -- negative ones stand for a tag or for "every spot".
    gram  INTEGER NOT NULL,
    -- How many.
    spots INTEGER NOT NULL,
    -- Which, as places in the chunk: ascending 16-bit little-endian numbers, or from 256 spots on
    -- a map of 4,096 bits.
    slots BLOB    NOT NULL,
    PRIMARY KEY (chunk, gram)
) STRICT, WITHOUT ROWID;

-- One row about the whole catalogue.
CREATE TABLE catalogue (
    only      INTEGER NOT NULL PRIMARY KEY CHECK (only = 1),
    -- Grows with every transaction that changes spots.
    revision  INTEGER NOT NULL,
    -- When the catalogue that comes with the program was loaded; it is loaded once.
    loaded_at INTEGER
) STRICT;

INSERT INTO catalogue (only, revision) VALUES (1, 0);

CREATE TABLE bookmarks (
    user_id    TEXT    NOT NULL REFERENCES members (id),
    spot_id    INTEGER NOT NULL REFERENCES tour_spots (id),
    created_at INTEGER NOT NULL,
    PRIMARY KEY (user_id, spot_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX bookmarks_newest ON bookmarks (user_id, created_at, spot_id);

CREATE TABLE reviews (
    -- Never given twice, so that an old link does not lead to a new review.
    id         INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    spot_id    INTEGER NOT NULL REFERENCES tour_spots (id),
    user_id    TEXT    NOT NULL REFERENCES members (id),
    created_at INTEGER NOT NULL,
    content    TEXT    NOT NULL,
    -- The number of its rows in review_likes, kept by the transactions that change them.
    like_count INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX reviews_newest ON reviews (spot_id, created_at, id);
CREATE INDEX reviews_by_author ON reviews (user_id);

CREATE TABLE review_likes (
    review_id INTEGER NOT NULL REFERENCES reviews (id),
    user_id   TEXT    NOT NULL REFERENCES members (id),
    PRIMARY KEY (review_id, user_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX review_likes_by_member ON review_likes (user_id);
