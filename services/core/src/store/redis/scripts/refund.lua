-- Takes failures back from counts.
for at, count in ipairs(KEYS) do
  local paid = redis.call('GET', count)
  if paid then
    local due = string.format('%.0f', tonumber(paid) - tonumber(ARGV[at]))
    redis.call('SET', count, due, 'KEEPTTL')
  end
end
