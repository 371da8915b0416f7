-- KEYS: the record. ARGV: appid, endpoint, the longest life, the channel, when it was fetched, when it ends, the record.
-- The newest fetch wins. Its end is absolute: a script that is executed late must not lengthen a life.
local before = kept(KEYS[1], ARGV[1], ARGV[2], ARGV[3])
if before and before.fetched_ms >= tonumber(ARGV[5]) then
  return 0
end
redis.call('SET', KEYS[1], ARGV[7])
redis.call('PEXPIREAT', KEYS[1], ARGV[6])
redis.call('PUBLISH', ARGV[4], 'saved')
return 1
