-- Put before every script of the ledger.
--
-- KEYS[1] is the hash of loads, KEYS[2] the sorted set of routers by the instant their heartbeat lapses; ARGV[1] is the
-- prefix of all keys and ARGV[2] the calling router. The other keys are derived from the prefix: they carry the same
-- hash tag, so that they live in the slot of the declared ones.
--
--   <prefix>loads               hash    instance id -> "requests context queued remaining" (milli-tokens for the last)
--   <prefix>routers             zset    router id -> when its heartbeat lapses (ms of this server's clock)
--   <prefix>reservation:<id>    hash    router, instance, prompt, predicted (milli-tokens), prefilled (0|1), generated,
--                                       cached; where another instance computes the prompt: prefiller, prefill_cached
--   <prefix>owned:<router>      set     request ids of the router's reservations
--   <prefix>taken:<router>      zset    request ids that another router took over, or released, from this one -> when (ms)
--   <prefix>claims:<model>      hash    router id -> "standing key told" of whoever goes first in its line (told: ms)
--
-- Every number is an integer below 2^53, so that sums are exact and return to zero.

local LOADS, ROUTERS = KEYS[1], KEYS[2]
local PREFIX, ME = ARGV[1], ARGV[2]
local FIRST_TTL_MS = 30000
local CLAIM_TTL_MS = 1000
local TAKEN_MAX, TAKEN_TTL_MS = 10000, 86400000

local function integer(number)
  return string.format('%.0f', number)
end

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function owned_key(router)
  return PREFIX .. 'owned:' .. router
end

local function taken_key(router)
  return PREFIX .. 'taken:' .. router
end

local function reservation_key(id)
  return PREFIX .. 'reservation:' .. id
end

local function unpack_load(packed)
  if not packed then
    return { requests = 0, context = 0, queued = 0, remaining = 0 }
  end
  local requests, context, queued, remaining = string.match(packed, '^(%S+) (%S+) (%S+) (%S+)$')
  return {
    requests = tonumber(requests),
    context = tonumber(context),
    queued = tonumber(queued),
    remaining = tonumber(remaining),
  }
end

local function pack_load(load)
  return integer(load.requests) .. ' ' .. integer(load.context) .. ' ' .. integer(load.queued) .. ' '
    .. integer(load.remaining)
end

local function read_load(instance)
  return unpack_load(redis.call('HGET', LOADS, instance))
end

-- What a reservation adds to its instance's load: llmrouter.routing.inflight.contribution, in milli-tokens.
local function contribution(entry)
  return {
    requests = 1,
    context = entry.prompt + entry.generated,
    queued = (entry.prefilled or entry.prefiller) and 0 or math.max(0, entry.prompt - entry.cached),
    remaining = math.max(0, entry.predicted - 1000 * entry.generated),
  }
end

-- What it adds to the load of the instance that computes its prompt: llmrouter.routing.inflight.prefill_contribution.
local function prefill_contribution(entry)
  return { requests = 1, context = entry.prompt, queued = math.max(0, entry.prompt - entry.prefill_cached), remaining = 0 }
end

local function change(instance, part, sign)
  local load = read_load(instance)
  for field, value in pairs(part) do
    load[field] = load[field] + sign * value
  end
  if load.requests > 0 then
    redis.call('HSET', LOADS, instance, pack_load(load))
  else
    redis.call('HDEL', LOADS, instance)
  end
end

local function count(entry, sign)
  change(entry.instance, contribution(entry), sign)
  if entry.prefiller and not entry.prefilled then
    change(entry.prefiller, prefill_contribution(entry), sign)
  end
end

local function read_reservation(id)
  local row = redis.call('HMGET', reservation_key(id), 'router', 'instance', 'prompt', 'predicted', 'prefilled', 'generated',
    'cached', 'prefiller', 'prefill_cached')
  if not row[1] then
    return nil
  end
  return {
    id = id,
    router = row[1],
    instance = row[2],
    prompt = tonumber(row[3]),
    predicted = tonumber(row[4]),
    prefilled = row[5] == '1',
    generated = tonumber(row[6]),
    cached = tonumber(row[7]),
    prefiller = row[8] or nil,
    prefill_cached = tonumber(row[9] or 0),
  }
end

local function answer(entry)
  if not entry then
    return {}
  end
  return {
    entry.id,
    entry.router,
    entry.instance,
    integer(entry.prompt),
    integer(entry.predicted),
    entry.prefilled and '1' or '0',
    integer(entry.generated),
    integer(entry.cached),
    entry.prefiller,
    entry.prefiller and integer(entry.prefill_cached),
  }
end

local function write_reservation(entry)
  redis.call('HSET', reservation_key(entry.id), 'router', entry.router, 'instance', entry.instance,
    'prompt', integer(entry.prompt), 'predicted', integer(entry.predicted),
    'prefilled', entry.prefilled and '1' or '0', 'generated', integer(entry.generated),
    'cached', integer(entry.cached))
  if entry.prefiller then
    redis.call('HSET', reservation_key(entry.id), 'prefiller', entry.prefiller,
      'prefill_cached', integer(entry.prefill_cached))
  end
end

-- Tells the other routers of whoever goes first in this router's line for a model, or, without a standing, of nobody.
local function claim(model, standing, key)
  local claims = PREFIX .. 'claims:' .. model
  if standing == '' then
    redis.call('HDEL', claims, ME)
  else
    redis.call('HSET', claims, ME, standing .. ' ' .. key .. ' ' .. integer(now_ms()))
    redis.call('PEXPIRE', claims, CLAIM_TTL_MS)
  end
end

-- Whether another router told lately of a request for a model that goes first: llmrouter.routing.orders.yields_to.
local function yields(model, standing, patient_key)
  local claims, since = PREFIX .. 'claims:' .. model, now_ms() - CLAIM_TTL_MS
  local rows = redis.call('HGETALL', claims)
  for i = 1, #rows, 2 do
    local theirs, key, told = string.match(rows[i + 1], '^(%S+) (%S+) (%S+)$')
    theirs = tonumber(theirs)
    if tonumber(told) <= since then
      redis.call('HDEL', claims, rows[i])
    elseif rows[i] ~= ME and (theirs > standing or theirs == standing and tonumber(key) < patient_key) then
      return true
    end
  end
  return false
end

-- A router that holds something is always among the routers, so that what it holds can lapse.
local function own(entry)
  entry.router = ME
  redis.call('SADD', owned_key(ME), entry.id)
  redis.call('ZREM', taken_key(ME), entry.id)
  redis.call('ZADD', ROUTERS, 'NX', integer(now_ms() + FIRST_TTL_MS), ME)
end

-- Leaves word for the owner that this router took an entry over from it, or released it.
local function tell_owner(entry)
  local taken = taken_key(entry.router)
  redis.call('ZADD', taken, integer(now_ms()), entry.id)
  redis.call('ZREMRANGEBYRANK', taken, 0, -TAKEN_MAX - 1)
  redis.call('PEXPIRE', taken, TAKEN_TTL_MS)
end

local function adopt(entry)
  if entry.router ~= ME then
    redis.call('SREM', owned_key(entry.router), entry.id)
    tell_owner(entry)
    own(entry)
  end
end

local function add(entry)
  own(entry)
  write_reservation(entry)
  count(entry, 1)
end

local function take_out(entry)
  redis.call('DEL', reservation_key(entry.id))
  redis.call('SREM', owned_key(entry.router), entry.id)
  count(entry, -1)
end

-- Takes out at most `budget` reservations of a router; returns how many.
local function drain(router, budget)
  local released = 0
  for _, id in ipairs(redis.call('SPOP', owned_key(router), budget)) do
    local entry = read_reservation(id)
    if entry then
      take_out(entry)
      released = released + 1
    end
  end
  return released
end

