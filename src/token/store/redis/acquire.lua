-- KEYS: the lease. ARGV: who asks, for how long, and after which silence a holder counts as dead.
-- The value is `owner:milliseconds`. Every sign of life sets the key's life to those, so what is gone of it is the
-- holder's silence.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'string' and redis.call('STRLEN', KEYS[1]) <= 64 then
  local owner, life = string.match(redis.call('GET', KEYS[1]), '^(%x+):(%d+)$')
  local granted = tonumber(life or '')
  local left = redis.call('PTTL', KEYS[1])
  -- Whoever asks again did not hear the answer.
  if granted and owner ~= ARGV[1] and left > granted - tonumber(ARGV[3]) and left <= granted then
    return 0
  end
end
redis.call('SET', KEYS[1], ARGV[1] .. ':' .. ARGV[2], 'PX', ARGV[2])
return 1
