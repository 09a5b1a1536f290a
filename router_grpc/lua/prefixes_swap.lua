-- KEYS: 1 the stream, 2 the common key of hashes. ARGV: 1 author, 2 its batch or '', 3 the most entries of the stream,
-- 4, 5 time to live of the stream and the key (ms), 6, 7 the two parts of the id that was read last ('' and 0 at first),
-- 8 the most entries to read, 9 bytes of batches after which no more are read, 10 bytes that no batch has.
-- Ids are <when the stream was made>-<place>, without gaps. A stream that was made anew is read from its beginning; a
-- reader whose next entry is gone goes on from the newest ones.
-- Returns the key or false, the two parts of the id to read on from, how many entries were missed, how many are too
-- large, and the batches of other authors, oldest first.
local function id(birth, place)
  return string.format('%s-%.0f', birth, place)
end
local key = redis.call('GET', KEYS[2])
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local birth, place = nil, 0
if last then
  birth, place = string.match(last[1], '^(%d+)-(%d+)$')
  place = tonumber(place)
end
if ARGV[2] ~= '' then
  if not birth then
    local now = redis.call('TIME')
    birth = string.format('%.0f', tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000))
  end
  place = place + 1
  redis.call('XADD', KEYS[1], 'MAXLEN', ARGV[3], id(birth, place), 'author', ARGV[1], 'uses', ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
  redis.call('PEXPIRE', KEYS[2], ARGV[5])
end
if not birth then
  return {key, ARGV[6], ARGV[7], 0, 0}
end
local read, page, missed, large, bytes, batches = 0, tonumber(ARGV[8]), 0, 0, 0, {}
if birth == ARGV[6] then
  read = tonumber(ARGV[7])
  local first = redis.call('XRANGE', KEYS[1], id(birth, read + 1), '+', 'COUNT', 1)[1]
  if first and first[1] ~= id(birth, read + 1) then
    local newest = math.max(read, place - page)
    missed, read = newest - read, newest
  end
end
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], id(birth, read + 1), '+', 'COUNT', page)) do
  read = tonumber(string.match(entry[1], '-(%d+)$'))
  local fields = entry[2]
  if not (fields[1] == 'author' and fields[2] == ARGV[1]) then
    local batch = fields[3] == 'uses' and fields[4] or ''
    if #batch > tonumber(ARGV[10]) then
      large = large + 1
    else
      batches[#batches + 1] = batch
      bytes = bytes + #batch
      if bytes >= tonumber(ARGV[9]) then
        break
      end
    end
  end
end
local answer = {key, birth, string.format('%.0f', read), missed, large}
for _, batch in ipairs(batches) do
  answer[#answer + 1] = batch
end
return answer
