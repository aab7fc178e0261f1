-- An event is in the stream: its nonce is used, its identity and second key are taken by it. The first to say so stays.
-- KEYS: generation, nonce, identity[, second key]
-- ARGV: fingerprint, identity, what is left of the lifetimes of its nonce and its identity in ms (0: over)
local generation = redis.call('GET', KEYS[1])
local suffix = generation and ':' .. generation or ''
local nonce, identity = KEYS[2] .. suffix, KEYS[3] .. suffix
if tonumber(ARGV[3]) > 0 and string.sub(redis.call('GET', nonce) or '', 1, 1) ~= 'u' then
    redis.call('SET', nonce, 'u' .. ARGV[1], 'PX', ARGV[3])
end
if tonumber(ARGV[4]) > 0 then
    if string.sub(redis.call('GET', identity) or '', 1, 1) ~= 'a' then
        redis.call('SET', identity, 'a' .. ARGV[1], 'PX', ARGV[4])
    end
    if KEYS[4] then redis.call('SET', KEYS[4] .. suffix, ARGV[2], 'NX', 'PX', ARGV[4]) end
end
return 1
