-- A token for a request that a host answered by itself; the bucket's debt never exceeds one burst.
-- KEYS: bucket
-- ARGV: a token's interval in us, burst
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local full_at = tonumber(redis.call('GET', KEYS[1]) or 0)
if full_at < now or full_at > now + (burst + 1) * interval then full_at = now end
full_at = math.min(full_at + interval, now + burst * interval)
redis.call('SET', KEYS[1], string.format('%.0f', full_at), 'PX', math.max(1, math.ceil((full_at - now) / 1000)))
return 1
