-- Write sessions' snapshots, none over a revoked one.
--
-- KEYS: for each snapshot its session's key, then the key that marks the session as revoked.
-- ARGV: for each snapshot its JSON, then its status.
-- Returns, for each, the JSON of the revoked snapshot that holds now, or "" where the session is active.
--
-- The mark is ours alone, so that a session stays revoked although somebody else writes its key.

local function revoked_under(key)
  local held = redis.pcall("GET", key)
  if type(held) ~= "string" then
    return nil
  end
  local decoded, session = pcall(cjson.decode, held)
  if decoded and type(session) == "table" and session.status == "revoked" then
    return held
  end
  return nil
end

local answers = {}
for i = 1, #KEYS, 2 do
  local key, mark = KEYS[i], KEYS[i + 1]
  local snapshot, status = ARGV[i], ARGV[i + 1]
  local holds = redis.call("GET", mark) or revoked_under(key) or (status == "revoked" and snapshot)
  if holds then
    redis.call("SET", mark, holds)
    redis.call("SET", key, holds)
  else
    redis.call("SET", key, snapshot, "KEEPTTL")
  end
  answers[#answers + 1] = holds or ""
end
return answers
