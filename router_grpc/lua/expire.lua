-- ARGV: 3 the most reservations and routers to work on in this call.
-- Returns {1 if there is more to do, router id, how many were released, router id, ...}.
local budget = tonumber(ARGV[3])
local lapsed = redis.call('ZRANGEBYSCORE', ROUTERS, '-inf', integer(now_ms()), 'LIMIT', 0, budget)
local result = { #lapsed == budget and 1 or 0 }
for _, router in ipairs(lapsed) do
  local released = drain(router, budget)
  budget = budget - released
  result[#result + 1] = router
  result[#result + 1] = released
  if redis.call('EXISTS', owned_key(router)) == 0 then
    redis.call('ZREM', ROUTERS, router)
  end
  if budget <= 0 then
    result[1] = 1
    break
  end
end
return result
