-- ARGV: 3 time to live (ms). Returns how many reservations the router holds.
redis.call('ZADD', ROUTERS, integer(now_ms() + tonumber(ARGV[3])), ME)
return redis.call('SCARD', owned_key(ME))
