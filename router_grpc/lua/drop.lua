-- ARGV: 3 number of request ids to release where this router holds them, then those; the rest are request ids whose
-- take-over this router has learned of.
local last = 3 + tonumber(ARGV[3])
for at = 4, last do
  local entry = read_reservation(ARGV[at])
  if entry and entry.router == ME then
    take_out(entry)
  end
end
for at = last + 1, #ARGV do
  redis.call('ZREM', taken_key(ME), ARGV[at])
end
return last - 3
