-- ARGV: from 3 on, per reservation: request id, instance id, prompt tokens, predicted output (milli-tokens), prefilled
-- (0|1), generated tokens, cached tokens, the instance that computes the prompt or '', and its cached tokens. Makes the
-- ledger hold each for this router, except where another took it over. Returns the request ids that are no longer this router's.
local now, lost = now_ms(), {}

local function is_taken(id, present)
  if present and present.router == ME then
    return false
  end
  if redis.call('ZSCORE', taken_key(ME), id) then
    return true
  end
  local lapses_at = present and redis.call('ZSCORE', ROUTERS, present.router)
  return lapses_at and tonumber(lapses_at) > now
end

for at = 3, #ARGV, 9 do
  local id = ARGV[at]
  local present = read_reservation(id)
  if is_taken(id, present) then
    lost[#lost + 1] = id
  else
    local entry = {
      id = id,
      instance = ARGV[at + 1],
      prompt = tonumber(ARGV[at + 2]),
      predicted = tonumber(ARGV[at + 3]),
      prefilled = ARGV[at + 4] == '1',
      generated = tonumber(ARGV[at + 5]),
      cached = tonumber(ARGV[at + 6]),
      prefiller = ARGV[at + 7] ~= '' and ARGV[at + 7] or nil,
      prefill_cached = tonumber(ARGV[at + 8]),
    }
    if present then
      entry.prefilled = entry.prefilled or present.prefilled
      entry.generated = math.max(entry.generated, present.generated)
      take_out(present)
      if present.router ~= ME then
        tell_owner(present)
      end
    end
    add(entry)
  end
end
return lost
