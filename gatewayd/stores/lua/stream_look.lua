-- How a stream stands, and the epoch of the stream under this key, at one moment.
--
-- KEYS: the stream, the hash that keeps its epoch.
-- ARGV: an epoch to begin when one is needed; then, of a caller who follows the stream, the epoch it knows, the id up to
--       which it has read, and how many entries were added up to there ("" where that is not known); '' for others.
-- Answers {epoch, base, first, last, added, length}. A stream that is not there is an empty one.
--
-- The hash holds the epoch, its base, and the last id and the number of entries added as they were seen last.
-- A hash that is ahead of its stream means another stream under the same key, and so do more entries behind the last one
-- that was seen than were added since; the same goes for what a caller knows. All of it is new: the base is 0-0.
-- A server that lost its tail (a replica that was behind, a file that was not synced) has lost the same stretch of both
-- keys: the hash agrees, and a caller is ahead of both. What was seen when the hash was written was read before; what
-- stands behind that may have been, or be new: the base is there, so that some may be read twice, and nothing is missed.

local function parts(id)
  return string.match(id, '^(%d+)-(%d+)$')
end

local function less_number(a, b)  -- 64 bits do not fit into a number here
  if #a ~= #b then return #a < #b end
  return a < b
end

local function less(a, b)
  local a_ms, a_seq = parts(a)
  local b_ms, b_seq = parts(b)
  if a_ms ~= b_ms then return less_number(a_ms, b_ms) end
  return less_number(a_seq, b_seq)
end

local first, last, added, length = '0-0', '0-0', 0, 0
local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
if info.err == nil then
  local members = {}
  for i = 1, #info, 2 do members[info[i]] = info[i + 1] end
  if members['entries-added'] == nil then
    return redis.error_reply('ERR streams need Redis 7 or later, or Valkey')
  end
  first, last = members['recorded-first-entry-id'], members['last-generated-id']
  added, length = members['entries-added'], members['length']
elseif not string.find(info.err, 'no such key', 1, true) then
  return redis.error_reply(info.err)
end

local kept = redis.call('HMGET', KEYS[2], 'epoch', 'base', 'last', 'added')
local epoch, base = kept[1], kept[2]
local known_last, known_added = kept[3] or '0-0', tonumber(kept[4] or '0')

-- Whether more entries stand behind an id than were added after it.
local function too_many_behind(id, added_before)
  return length > 0 and less(id, first) and length > added - added_before
end

local followed, at, counted = epoch and ARGV[2] == epoch, ARGV[3], tonumber(ARGV[4])
local another = not epoch or added < known_added or less(last, known_last) or too_many_behind(known_last, known_added)
local ahead = followed and less(last, at)
if followed and counted and not ahead then
  another = another or added < counted or too_many_behind(at, counted)
end
if another then
  epoch, base = ARGV[1], '0-0'
elseif ahead then
  epoch, base = ARGV[1], known_last
end
if epoch ~= kept[1] or last ~= kept[3] or added ~= known_added then
  redis.call('HSET', KEYS[2], 'epoch', epoch, 'base', base, 'last', last, 'added', added)
end
return {epoch, base, first, last, added, length}
