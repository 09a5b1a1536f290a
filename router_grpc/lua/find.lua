-- ARGV: 3 request id. Returns the reservation, or an empty list.
return answer(read_reservation(ARGV[3]))
