-- Returns {request ids that the router holds, request ids that others took over from it}.
return { redis.call('SMEMBERS', owned_key(ME)), redis.call('ZRANGE', taken_key(ME), 0, -1) }
