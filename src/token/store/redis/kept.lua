-- What the scripts have in common. Times are Redis's own clock, in milliseconds.

local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- The record in the key, if it is one of ours and could be right; whatever else is there counts as nothing.
local function kept(key, appid, endpoint, longest)
  if redis.call('TYPE', key).ok ~= 'string' or redis.call('STRLEN', key) > 16384 then
    return nil
  end
  local sound, record = pcall(cjson.decode, redis.call('GET', key))
  if not sound or type(record) ~= 'table' or record.v ~= 1 or record.appid ~= appid or record.endpoint ~= endpoint then
    return nil
  end
  local fetched, ends = record.fetched_ms, record.ends_ms
  if type(fetched) ~= 'number' or type(ends) ~= 'number' or ends <= fetched or ends - fetched > tonumber(longest) then
    return nil
  end
  -- One from the future was written before the clock was set back; it must not stand in the way until then.
  if fetched > now() + 2000 or redis.call('PTTL', key) < 0 then
    return nil
  end
  return record
end
