-- ARGV: 3 request id, 4 prompt tokens, 5 predicted output (milli-tokens), 6 tolerance or '', 7 final (0|1), 8 the bids
-- as JSON, a list per field: instance ids, seen requests, max requests, KV limits in tokens or false, decode reserve
-- fractions, cached tokens; 9 the model, and of whoever asks 10 the standing or '', 11 the key, 12 the patient key; 13 the
-- bids for computing the prompt elsewhere, '' or one for each bid, of instance '' where there is none. Returns {outcome,
-- reservation, packed load of each bid and then of each of those}.
local REQUEST, PROMPT, PREDICTED = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local TOLERANCE, FINAL = tonumber(ARGV[6]), ARGV[7] == '1'
local INSTANCES, SEEN, MAX_REQUESTS, KV_LIMITS, FRACTIONS, CACHED = unpack(cjson.decode(ARGV[8]))

local MODEL, STANDING, KEY, PATIENT_KEY = ARGV[9], ARGV[10], ARGV[11], ARGV[12]

local PREFILLS = ARGV[13] ~= '' and cjson.decode(ARGV[13])
local function prefiller(i)
  return PREFILLS and PREFILLS[1][i] ~= '' and PREFILLS[1][i] or nil
end

-- llmrouter.routing.inflight.has_room, operation by operation.
local function has_room(load, max_requests, kv_limit, fraction, predicted)
  if load.requests <= 0 then
    return true
  end
  if load.requests >= max_requests then
    return false
  end
  if not kv_limit then
    return true
  end
  local expected = fraction * (load.remaining / 1000 + predicted / 1000)
  return load.context + PROMPT + expected <= kv_limit
end

-- Loads are read at once and unpacked one by one: most calls end at one of the first candidates.
local loads = {}
local function read_loads(instances, offset)
  for from = 1, #instances, 1000 do
    local rows = redis.call('HMGET', LOADS, unpack(instances, from, math.min(#instances, from + 999)))
    for i, packed in ipairs(rows) do
      loads[offset + from + i - 1] = packed or '0 0 0 0'
    end
  end
end
read_loads(INSTANCES, 0)
if PREFILLS then
  read_loads(PREFILLS[1], #INSTANCES)
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

-- How many requests the i-th bid has gained; nothing where it has no room, or nobody has room to compute the prompt.
local function gain_of(i)
  local load = unpack_load(loads[i])
  if not has_room(load, MAX_REQUESTS[i], KV_LIMITS[i], FRACTIONS[i], PREDICTED) then
    return nil
  end
  local gain = load.requests - SEEN[i]
  if not prefiller(i) then
    return gain
  end
  load = unpack_load(loads[#INSTANCES + i])
  if not has_room(load, PREFILLS[3][i], PREFILLS[4][i], PREFILLS[5][i], 0) then
    return nil
  end
  return math.max(gain, load.requests - PREFILLS[2][i])
end

local first, least, least_gain
for i = 1, #INSTANCES do
  local gain = gain_of(i)
  if gain then
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
  prefiller = prefiller(chosen),
  prefill_cached = prefiller(chosen) and PREFILLS[6][chosen] or 0,
}
add(entry)
if STANDING ~= '' then
  claim(MODEL, '', '')
end
local fresh = { [entry.instance] = pack_load(read_load(entry.instance)) }
if entry.prefiller then
  fresh[entry.prefiller] = pack_load(read_load(entry.prefiller))
end
if PREFILLS then
  for i, instance in ipairs(PREFILLS[1]) do
    loads[#INSTANCES + i] = fresh[instance] or loads[#INSTANCES + i]
  end
end
for i, instance in ipairs(INSTANCES) do
  loads[i] = fresh[instance] or loads[i]
end
return { 'Committed', answer(entry), loads }
