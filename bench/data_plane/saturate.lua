-- Every request is another prompt: a line of the file in PROMPTS, with a number in the placeholder's place.
local before, after, number = {}, {}, 0

function init(_)
  local placeholder = string.rep("#", 12)
  for line in io.lines(os.getenv("PROMPTS")) do
    local from, to = string.find(line, placeholder, 1, true)
    wrk.headers["content-type"] = "application/json"
    wrk.body = line
    local whole = wrk.format("POST", "/v1/chat/completions")
    from, to = string.find(whole, placeholder, 1, true)
    before[#before + 1] = string.sub(whole, 1, from - 1)
    after[#after + 1] = string.sub(whole, to + 1)
  end
  math.randomseed(tonumber(os.getenv("SEED")))
  number = math.random(1, 9e10)
end

function request()
  number = number + 1
  local line = number % #before + 1
  return before[line] .. string.format("%012d", number) .. after[line]
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '\n@{"requests":%d,"seconds":%.6f,"status":%d,"connect":%d,"read":%d,"write":%d,"timeout":%d,' ..
    '"p50":%.3f,"p95":%.3f,"p99":%.3f,"max":%.3f}\n',
    summary.requests, summary.duration / 1e6, errors.status, errors.connect, errors.read, errors.write, errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
