-- KEYS: 1 the stream, 2 what its author last appended. ARGV: 1 author, 2 its number of the entry, 3 the entry,
-- 4 the most entries, 5 time to live of the stream (ms), 6 of the author (ms).
-- Ids are <when the stream was made>-<place>, without gaps. An entry that is there already is not appended again.
-- Returns the id.
local number, id = string.match(redis.call('GET', KEYS[2]) or '', '^(%d+) (.+)$')
if number and tonumber(number) >= tonumber(ARGV[2]) then
  return id
end
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local birth, place
if last then
  birth, place = string.match(last[1], '^(%d+)-(%d+)$')
else
  local now = redis.call('TIME')
  birth, place = string.format('%.0f', tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)), 0
end
id = string.format('%s-%.0f', birth, tonumber(place) + 1)
redis.call('XADD', KEYS[1], 'MAXLEN', ARGV[4], id, 'author', ARGV[1], 'counts', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('SET', KEYS[2], string.format('%.0f', tonumber(ARGV[2])) .. ' ' .. id, 'PX', ARGV[6])
return id
