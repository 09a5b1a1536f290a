-- KEYS: 1 the stream. ARGV: 1, 2 the two parts of the id that was read last, 3 the most entries.
-- A stream that was made anew is read from its beginning. Returns entries as XRANGE does.
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not last then
  return {}
end
local birth = string.match(last[1], '^(%d+)')
local from = '(' .. ARGV[1] .. '-' .. ARGV[2]
if birth ~= ARGV[1] then
  from = birth .. '-0'
end
return redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', ARGV[3])
