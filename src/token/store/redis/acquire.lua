-- KEYS: the lease. ARGV: who asks, for how long, and after which silence a holder counts as dead.
-- The value is `owner:milliseconds`. Every sign of life sets the key's life to those, so what is gone of it is the
-- holder's silence.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'string' and redis.call('STRLEN', KEYS[1]) <= 64 then
  local granted = tonumber(string.match(redis.call('GET', KEYS[1]), '^%x+:(%d+)$') or '')
  local left = redis.call('PTTL', KEYS[1])
  if granted and left > granted - tonumber(ARGV[3]) and left <= granted then
    return 0
  end
end
redis.call('SET', KEYS[1], ARGV[1] .. ':' .. ARGV[2], 'PX', ARGV[2])
return 1
