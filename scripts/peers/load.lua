-- What wrk prints for scripts/bench_load.py: one line, because its own report is rounded and has no 99.9th percentile.
-- With BENCH_FRESH_PATHS=/prefix each request asks for a path of its own: /prefix1, /prefix2, ... (one thread: -t1)
local prefix = os.getenv("BENCH_FRESH_PATHS")
if prefix then
  local n = 0
  function request()
    n = n + 1
    return wrk.format(nil, prefix .. n)
  end
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    "bench requests=%d duration_us=%d p50_us=%d p99_us=%d p999_us=%d failed=%d\n",
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency:percentile(99.9),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
