-- KEYS: the record. ARGV: appid, endpoint, the longest life, the channel, the token's fingerprint, how it stands now.
local record = kept(KEYS[1], ARGV[1], ARGV[2], ARGV[3])
if not record or record.fingerprint ~= ARGV[5] or record.standing == ARGV[6] then
  return 0
end
record.standing = ARGV[6]
redis.call('SET', KEYS[1], cjson.encode(record))
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', record.ends_ms))
redis.call('PUBLISH', ARGV[4], 'refused')
return 1
