-- KEYS: the lease. ARGV: who holds it, for how long. A Redis that lost it is given it again; a thief keeps it.
local value = ARGV[1] .. ':' .. ARGV[2]
if redis.call('TYPE', KEYS[1]).ok == 'none' then
  redis.call('SET', KEYS[1], value, 'PX', ARGV[2])
  return 1
end
if redis.call('TYPE', KEYS[1]).ok ~= 'string' or redis.call('GET', KEYS[1]) ~= value then
  return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
