-- ARGV: 3 request id, 4 prompt tokens, 5 predicted output (milli-tokens), 6 tolerance or '', 7 final (0|1), 8 the bids
-- as JSON, a list per field: instance ids, seen requests, max requests, KV limits in tokens or false, decode reserve
-- fractions, cached tokens; 9 the model, and of whoever asks 10 the standing or '', 11 the key, 12 the patient key. Returns {outcome, reservation, packed load of each bid}.
local REQUEST, PROMPT, PREDICTED = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local TOLERANCE, FINAL = tonumber(ARGV[6]), ARGV[7] == '1'
local INSTANCES, SEEN, MAX_REQUESTS, KV_LIMITS, FRACTIONS, CACHED = unpack(cjson.decode(ARGV[8]))

local MODEL, STANDING, KEY, PATIENT_KEY = ARGV[9], ARGV[10], ARGV[11], ARGV[12]

-- llmrouter.routing.inflight.has_room, operation by operation.
local function has_room(load, max_requests, kv_limit, fraction)
  if load.requests <= 0 then
    return true
  end
  if load.requests >= max_requests then
    return false
  end
  if not kv_limit then
    return true
  end
  local expected = fraction * (load.remaining / 1000 + PREDICTED / 1000)
  return load.context + PROMPT + expected <= kv_limit
end

-- Loads are read at once and unpacked one by one: most calls end at one of the first candidates.
local loads = {}
for from = 1, #INSTANCES, 1000 do
  local rows = redis.call('HMGET', LOADS, unpack(INSTANCES, from, math.min(#INSTANCES, from + 999)))
  for i, packed in ipairs(rows) do
    loads[from + i - 1] = packed or '0 0 0 0'
  end
end

local existing = read_reservation(REQUEST)
if existing then
  adopt(existing)
  write_reservation(existing)
  return { 'Existing', answer(existing), loads }
end

if STANDING ~= '' and yields(MODEL, tonumber(STANDING), tonumber(PATIENT_KEY)) then
  claim(MODEL, STANDING, KEY)
  return { 'Yielded', {}, loads }
end

local first, least, least_gain
for i, instance in ipairs(INSTANCES) do
  local load = unpack_load(loads[i])
  if has_room(load, MAX_REQUESTS[i], KV_LIMITS[i], FRACTIONS[i]) then
    local gain = load.requests - SEEN[i]
    if not TOLERANCE or gain <= TOLERANCE then
      first = i
      break
    end
    if not least or gain < least_gain then
      least, least_gain = i, gain
    end
  end
end

local chosen = first or (FINAL and least)
if not chosen then
  if STANDING ~= '' then
    claim(MODEL, STANDING, KEY)
  end
  return { least and 'Moved' or 'Full', {}, loads }
end
local entry = {
  id = REQUEST,
  instance = INSTANCES[chosen],
  prompt = PROMPT,
  predicted = PREDICTED,
  prefilled = false,
  generated = 0,
  cached = CACHED[chosen],
}
add(entry)
if STANDING ~= '' then
  claim(MODEL, '', '')
end
local fresh = pack_load(read_load(entry.instance))
for i, instance in ipairs(INSTANCES) do
  if instance == entry.instance then
    loads[i] = fresh
  end
end
return { 'Committed', answer(entry), loads }
