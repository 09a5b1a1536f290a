-- ARGV: from 3 on, per model with a line here, now or before: model, standing of whoever goes first or '', key, patient key.
-- Returns instance id, packed load, instance id, packed load, ...
for at = 3, #ARGV, 4 do
  claim(ARGV[at], ARGV[at + 1], ARGV[at + 2])
end
return redis.call('HGETALL', LOADS)
