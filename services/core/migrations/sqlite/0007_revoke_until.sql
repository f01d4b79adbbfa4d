-- Until when a revocation of the session must be kept: its last access token has expired by then. 0 for sessions of
-- an earlier version: the lifetime in the settings applies.
ALTER TABLE sessions ADD COLUMN revoke_until INTEGER NOT NULL DEFAULT 0;
