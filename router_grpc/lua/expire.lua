-- ARGV: 3 the most reservations and routers to work on in this call. The calling router is alive, whatever its heartbeat.
-- Returns {1 if there is more to do, router id, how many were released, router id, ...}.
local budget = tonumber(ARGV[3])
local lapsed = redis.call('ZRANGEBYSCORE', ROUTERS, '-inf', integer(now_ms()), 'LIMIT', 0, budget)
local result = { 0 }

local function give_up(router)
  local released = drain(router, budget)
  budget = budget - released
  result[#result + 1] = router
  result[#result + 1] = released
  if redis.call('EXISTS', owned_key(router)) == 0 then
    redis.call('ZREM', ROUTERS, router)
  end
end

for _, router in ipairs(lapsed) do
  if router ~= ME and budget > 0 then
    give_up(router)
  end
end
if budget <= 0 or #lapsed == tonumber(ARGV[3]) then
  result[1] = 1
end
return result
