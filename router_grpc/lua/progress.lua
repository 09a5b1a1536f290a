-- ARGV: 3 request id, 4 prefilled (0|1), 5 generated tokens, 6 predicted milli-tokens, or nothing.
-- Returns the reservation, or an empty list.
local entry = read_reservation(ARGV[3])
if not entry then
  return {}
end
count(entry, -1)
entry.prefilled = entry.prefilled or ARGV[4] == '1'
if ARGV[6] ~= '' and tonumber(ARGV[5]) >= entry.generated then
  entry.predicted = tonumber(ARGV[6])
end
entry.generated = math.max(entry.generated, tonumber(ARGV[5]))
count(entry, 1)
adopt(entry)
write_reservation(entry)
return answer(entry)
