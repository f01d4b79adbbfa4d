-- SHA-256 of the ids of deleted members, in lower case: nobody else can take them. A digest, because an erasure
-- leaves no name behind; a caller who guesses an id can still ask whether it is taken, as for any other id.
CREATE TABLE deleted_ids (
    digest BLOB NOT NULL PRIMARY KEY
) STRICT, WITHOUT ROWID;
