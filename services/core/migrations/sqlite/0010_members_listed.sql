-- What the list of members reads, in its order and apart from the rest of the rows.
CREATE INDEX members_listed ON members (id, id_folded, name_folded, name);
