-- ARGV: 3 request id, 4 prompt tokens, 5 predicted output (milli-tokens), 6 tolerance or '', 7 final (0|1), 8 number of
-- bids; then per bid: instance id, seen requests, max requests, KV limit in tokens or '', decode reserve fraction.
-- Returns {outcome, reservation, packed load of each bid}.
local REQUEST, PROMPT, PREDICTED = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local TOLERANCE, FINAL, BIDS = tonumber(ARGV[6]), ARGV[7] == '1', tonumber(ARGV[8])

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

local function bid_loads()
  local loads = {}
  for i = 0, BIDS - 1 do
    loads[#loads + 1] = pack_load(read_load(ARGV[9 + 5 * i]))
  end
  return loads
end

local existing = read_reservation(REQUEST)
if existing then
  adopt(existing)
  write_reservation(existing)
  return { 'Existing', answer(existing), bid_loads() }
end

local first, least, least_gain
for i = 0, BIDS - 1 do
  local at = 9 + 5 * i
  local load = read_load(ARGV[at])
  if has_room(load, tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])) then
    local gain = load.requests - tonumber(ARGV[at + 1])
    if not TOLERANCE or gain <= TOLERANCE then
      first = ARGV[at]
      break
    end
    if not least or gain < least_gain then
      least, least_gain = ARGV[at], gain
    end
  end
end

local chosen = first or (FINAL and least)
if not chosen then
  return { least and 'Moved' or 'Full', {}, bid_loads() }
end
local entry = { id = REQUEST, instance = chosen, prompt = PROMPT, predicted = PREDICTED, prefilled = false, generated = 0 }
add(entry)
return { 'Committed', answer(entry), bid_loads() }
