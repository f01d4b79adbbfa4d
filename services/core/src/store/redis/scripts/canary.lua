-- Appends an entry that ends no session.
tell(ARGV[3], ARGV[4])
