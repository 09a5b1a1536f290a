-- KEYS: 1 the lease. ARGV: 1 author, 2 how long it holds (ms). Returns 1 where the author has it.
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
