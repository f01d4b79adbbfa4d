-- Columns that MySQL has, so that both engines are asked by the same statements.

-- The id in lower case: no two may differ in case only.
ALTER TABLE members ADD COLUMN id_folded TEXT;
UPDATE members SET id_folded = lower(id);
CREATE UNIQUE INDEX members_id_folded ON members (id_folded);
DROP INDEX members_id_nocase;

-- As used_at while there is a salt; NULL otherwise.
ALTER TABLE refresh_tokens ADD COLUMN salted_at INTEGER;
UPDATE refresh_tokens SET salted_at = used_at WHERE salt IS NOT NULL;
DROP INDEX refresh_tokens_in_grace;
CREATE INDEX refresh_tokens_in_grace ON refresh_tokens (salted_at) WHERE salted_at IS NOT NULL;
