-- KEYS: the record. Returns the time (seconds, microseconds), what is in the key, the life it has left, and its text.
local time = redis.call('TIME')
local kind = redis.call('TYPE', KEYS[1]).ok
if kind == 'none' then
  return { time[1], time[2], 'none', -2, '' }
end
if kind ~= 'string' then
  return { time[1], time[2], 'wrong', -1, '' }
end
if redis.call('STRLEN', KEYS[1]) > 16384 then
  return { time[1], time[2], 'long', -1, '' }
end
return { time[1], time[2], 'text', redis.call('PTTL', KEYS[1]), redis.call('GET', KEYS[1]) }
