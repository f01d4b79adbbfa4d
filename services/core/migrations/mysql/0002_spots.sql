-- Tour spots and their search index, bookmarks, reviews, likes. Times are microseconds since the
-- epoch. Every statement bears being run again: a step that broke off is run again as a whole.

CREATE TABLE IF NOT EXISTS tour_spots (
    -- Dense, given in the order of arrival, never shown: the spot's place in the search index.
    ord          BIGINT            NOT NULL PRIMARY KEY,
    id           BIGINT            NOT NULL,
    version      BIGINT            NOT NULL,
    -- NFC, trimmed, without control characters, so that this collation (which pads with spaces)
    -- compares by code points.
    name         VARCHAR(200)      NOT NULL,
    address      VARCHAR(300)      NOT NULL,
    lat          DOUBLE            NOT NULL,
    lng          DOUBLE            NOT NULL,
    -- The Z-order code of lat and lng.
    cell         BIGINT            NOT NULL,
    -- A bit per tag.
    tags         SMALLINT UNSIGNED NOT NULL,
    image_url    VARCHAR(2048)     NULL,
    description  TEXT              NULL,
    phone_number VARCHAR(100)      NULL,
    UNIQUE KEY tour_spots_by_id (id),
    -- Pages of the list.
    KEY tour_spots_by_name (name, id),
    -- The map; lat and lng so that no row is read to leave it out.
    KEY tour_spots_by_cell (cell, id, lat, lng)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- What a query is compared with: name and address, folded, in UTF-8, with a byte between them that
-- no UTF-8 has (0xFF).
CREATE TABLE IF NOT EXISTS spot_texts (
    ord    BIGINT          NOT NULL PRIMARY KEY,
    folded VARBINARY(4000) NOT NULL
) ENGINE = InnoDB;

-- Which spots have a gram. The spots are taken in chunks of 4,096 by ord, and a row has all spots
-- of one chunk with one gram: looking a gram up is one walk over neighbouring rows.
CREATE TABLE IF NOT EXISTS spot_grams (
    -- A character's code point, or two neighbours' (the first above 21 bits of the second);
    -- negative ones stand for a tag or for "every spot".
    gram  BIGINT            NOT NULL,
    chunk INT               NOT NULL,
    -- How many.
    spots SMALLINT UNSIGNED NOT NULL,
    -- Which, as places in the chunk: ascending 16-bit little-endian numbers, or from 256 spots on
    -- a map of 4,096 bits.
    slots VARBINARY(512)    NOT NULL,
    PRIMARY KEY (gram, chunk)
) ENGINE = InnoDB;

-- One row about the whole catalogue; locked by whoever changes spots, one at a time.
CREATE TABLE IF NOT EXISTS catalogue (
    id        TINYINT NOT NULL PRIMARY KEY,
    -- Grows with every transaction that changes spots.
    revision  BIGINT  NOT NULL,
    -- How many spots there are, which is the next one's ord.
    spots     BIGINT  NOT NULL,
    -- When the catalogue that comes with the program was loaded; it is loaded once.
    loaded_at BIGINT  NULL
) ENGINE = InnoDB;

INSERT IGNORE INTO catalogue (id, revision, spots) VALUES (1, 0, 0);

CREATE TABLE IF NOT EXISTS bookmarks (
    user_id    VARCHAR(32) NOT NULL,
    spot_id    BIGINT      NOT NULL,
    created_at BIGINT      NOT NULL,
    PRIMARY KEY (user_id, spot_id),
    KEY bookmarks_newest (user_id, created_at, spot_id),
    KEY bookmarks_of_spot (spot_id),
    CONSTRAINT bookmarks_member FOREIGN KEY (user_id) REFERENCES members (id),
    CONSTRAINT bookmarks_spot FOREIGN KEY (spot_id) REFERENCES tour_spots (id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS reviews (
    -- Never given twice, so that an old link does not lead to a new review.
    id         BIGINT        NOT NULL AUTO_INCREMENT PRIMARY KEY,
    spot_id    BIGINT        NOT NULL,
    user_id    VARCHAR(32) NOT NULL,
    created_at BIGINT        NOT NULL,
    content    VARCHAR(500)  NOT NULL,
    -- The number of its rows in review_likes, kept by the transactions that change them.
    like_count BIGINT        NOT NULL DEFAULT 0,
    KEY reviews_newest (spot_id, created_at, id),
    KEY reviews_by_author (user_id),
    CONSTRAINT reviews_spot FOREIGN KEY (spot_id) REFERENCES tour_spots (id),
    CONSTRAINT reviews_member FOREIGN KEY (user_id) REFERENCES members (id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE IF NOT EXISTS review_likes (
    review_id BIGINT      NOT NULL,
    user_id   VARCHAR(32) NOT NULL,
    PRIMARY KEY (review_id, user_id),
    KEY review_likes_by_member (user_id),
    CONSTRAINT review_likes_review FOREIGN KEY (review_id) REFERENCES reviews (id),
    CONSTRAINT review_likes_member FOREIGN KEY (user_id) REFERENCES members (id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
