-- Tells the gateways which cached responses are out of date: the time until which it is kept, then pairs of an id that no
-- session can have and a tag.
for at = 4, #ARGV, 2 do
  tell(ARGV[at], ARGV[3], 'invalidate', ARGV[at + 1])
end
