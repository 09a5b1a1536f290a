-- ARGV: 3 request id. Returns the reservation that was taken out, or an empty list.
local entry = read_reservation(ARGV[3])
if not entry then
  return {}
end
take_out(entry)
if entry.router ~= ME then
  tell_owner(entry)
end
return answer(entry)
