-- One claim on what every host remembers: a token first, then nonce, second key and identity, in one step.
-- KEYS: generation, bucket, nonce, identity[, second key]
-- ARGV: a token's interval in us, burst, fingerprint, identity, lease in ms, lifetimes of nonces and identities in ms
-- Answers l<us to wait>, r (nonce of another request), s (the same request), c<identity>, d (accepted before), f (fresh).
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local full_at = tonumber(redis.call('GET', KEYS[2]) or 0)
-- Further ahead than a bucket can be in debt: the server's clock stepped back, or the limit was changed.
if full_at < now or full_at > now + (burst + 1) * interval then full_at = now end
local wait = full_at + interval - now - burst * interval
-- The asking host found a token at its own clock; on the way here one request comes closer to another.
if wait > math.min(5000, interval / 2) then return 'l' .. string.format('%.0f', math.ceil(wait)) end
redis.call('SET', KEYS[2], string.format('%.0f', full_at + interval), 'PX', math.ceil((full_at + interval - now) / 1000))

local generation = redis.call('GET', KEYS[1])
local suffix = generation and ':' .. generation or ''
local nonce, identity = KEYS[3] .. suffix, KEYS[4] .. suffix
local second = KEYS[5] and KEYS[5] .. suffix
local fingerprint = ARGV[3]

local used = redis.call('GET', nonce)
if used then
    local same = string.sub(used, 2) == fingerprint
    if string.sub(used, 1, 1) == 'u' then return same and 's' or 'r' end
    if not same then return 'r' end
end
local holder = second and redis.call('GET', second)
if holder and holder ~= ARGV[4] then return 'c' .. holder end
local known = redis.call('GET', identity)
if known and string.sub(known, 2) ~= fingerprint then return 'c' .. ARGV[4] end
if known and string.sub(known, 1, 1) == 'a' then
    redis.call('SET', nonce, 'u' .. fingerprint, 'PX', ARGV[6])
    if second then redis.call('SET', second, ARGV[4], 'NX', 'PX', ARGV[7]) end
    return 'd'
end
redis.call('SET', nonce, 'h' .. fingerprint, 'PX', ARGV[5])
return 'f'
