-- The member's name in lower case of any script, NFC: what a search compares with. NULL where a version
-- without it wrote the name; such a name has ASCII letters or Hangul, which lower(name) folds alike.
ALTER TABLE members ADD COLUMN name_folded TEXT;
