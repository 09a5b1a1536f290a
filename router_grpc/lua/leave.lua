-- ARGV: 3 the most reservations to release in this call. Returns {1 if there is more to do, how many were released}.
local released = drain(ME, tonumber(ARGV[3]))
if redis.call('EXISTS', owned_key(ME)) == 1 then
  return { 1, released }
end
redis.call('ZREM', ROUTERS, ME)
redis.call('DEL', taken_key(ME))
return { 0, released }
