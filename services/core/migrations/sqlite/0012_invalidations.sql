-- Entries of the log that end no session: a tag of cached responses that are out of date. Their session is an id that no
-- session can have.
ALTER TABLE revocations ADD COLUMN invalidates TEXT;
