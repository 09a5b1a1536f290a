-- KEYS: 1 the lease, 2 the snapshot. ARGV: 1 author, 2 id up to which entries are covered, 3 the author's own last id,
-- 4 counts, 5 time to live (ms). Returns 1 where it was kept: by the holder of the lease alone.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[2], 'covers', ARGV[2], 'author', ARGV[1], 'own', ARGV[3], 'counts', ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
return 1
