-- For wrk with two threads: asks the paths of a file, one a line, in their order. One thread asks the odd lines and the other
-- the even ones.
--   PATHS=searches.txt wrk -t2 -c100 -d20s --latency -s deploy/bench/paths.lua http://127.0.0.1:8081
-- Prints a line of JSON: requests per second, mean and percentiles in milliseconds, failures, and how many of the
-- requests asked for a path for the first time.

local paths = {}
local file = assert(os.getenv("PATHS"), "PATHS is not set")
for path in io.lines(file) do
  paths[#paths + 1] = path
end
local threads = 0
local at = 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init(_)
  at = number
end

function request()
  local path = paths[at % #paths + 1]
  at = at + 2
  return wrk.format("GET", path)
end

function done(summary, latency, _)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format(
    '{"requests_per_s": %.0f, "mean_ms": %.2f, "p50_ms": %.2f, "p95_ms": %.2f, "p99_ms": %.2f, "max_ms": %.1f, "failed": %d, "requests": %d, "first": %d}\n',
    summary.requests / summary.duration * 1e6, latency.mean / 1e3, latency:percentile(50) / 1e3,
    latency:percentile(95) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3, failed, summary.requests,
    math.min(summary.requests, #paths)))
end
