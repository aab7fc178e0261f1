-- A fresh claim came to nothing: its nonce is free again. Perhaps it showed that another body holds the identity.
-- KEYS: generation, nonce, identity
-- ARGV: fingerprint, the holder's fingerprint ('' when it is not known), an identity's lifetime in ms
local generation = redis.call('GET', KEYS[1])
local suffix = generation and ':' .. generation or ''
if redis.call('GET', KEYS[2] .. suffix) == 'h' .. ARGV[1] then redis.call('DEL', KEYS[2] .. suffix) end
if ARGV[2] ~= '' then redis.call('SET', KEYS[3] .. suffix, 't' .. ARGV[2], 'NX', 'PX', ARGV[3]) end
return 1
