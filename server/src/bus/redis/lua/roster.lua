-- Users who came to a room on a node or left it. KEYS: the roster (hash, user to nodes and name), the count last told.
-- ARGV: the command (PUBLISH or SPUBLISH), the channel, the room, node, life, the end of this node's own events, the most
-- users of a room that is told who comes and goes (0: no limit), seconds to live; then for each change `+` (came), `=`
-- (came, nobody is told) or `-` (left), the user id, the name.
-- A roster's value: `node/life` for each node, spaces between, a line end, the name.
-- Answers: for each change 1 if this made the user the first or last on any node and all others were told; the count if
-- that was told in its place, else -1; 1 if it was told too lately and is to be looked at again.
local ROSTER, TOLD = KEYS[1], KEYS[2]
local room, node, life, tail = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local limit, seconds = tonumber(ARGV[7]), ARGV[8]

local time = redis.call('TIME')
local ms = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))

local function tell(kind, user, name)
  redis.call(ARGV[1], ARGV[2], '{"type":"' .. kind .. '","userId":"' .. user .. '","username":' .. cjson.encode(name)
    .. ',"roomId":"' .. room .. '","timestamp":' .. ms .. tail)
end

-- The nodes of a value but this one, and this one's life.
local function others(value)
  local kept, own = {}, nil
  for entry in string.gmatch(string.match(value, '^[^\n]*'), '[^ ]+') do
    if string.sub(entry, 1, #node + 1) == node .. '/' then
      own = string.sub(entry, #node + 2)
    else
      kept[#kept + 1] = entry
    end
  end
  return kept, own
end

-- Whether the user is the first on any node, or was the last.
local function apply(joins, user, name)
  local value = redis.call('HGET', ROSTER, user)
  if joins then
    local kept = value and others(value) or {}
    kept[#kept + 1] = node .. '/' .. life
    redis.call('HSET', ROSTER, user, table.concat(kept, ' ') .. '\n' .. name)
    return not value
  end
  if not value then
    return false
  end
  local kept, own = others(value)
  if own ~= life then
    return false
  end
  if #kept == 0 then
    redis.call('HDEL', ROSTER, user)
    return true
  end
  redis.call('HSET', ROSTER, user, table.concat(kept, ' ') .. string.match(value, '\n.*$'))
  return false
end

local told, counts = {}, #ARGV == 8
for i = 9, #ARGV, 3 do
  local what, user, name = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local before = redis.call('HLEN', ROSTER)
  local is_edge = apply(what ~= '-', user, name)
  local is_large = limit > 0 and math.max(before, redis.call('HLEN', ROSTER)) > limit
  local is_told = is_edge and what ~= '=' and not is_large
  if is_told then
    tell(what == '-' and 'user_left' or 'user_joined', user, name)
  end
  counts = counts or is_edge and is_large
  told[#told + 1] = is_told and 1 or 0
end
redis.call('EXPIRE', ROSTER, seconds)

local counted, again = -1, 0
if counts then
  local count = redis.call('HLEN', ROSTER)
  local last = redis.call('GET', TOLD)
  if not last then
    redis.call('SET', TOLD, count, 'PX', 1000)
    redis.call(ARGV[1], ARGV[2], '{"type":"members","roomId":"' .. room .. '","count":' .. count .. tail)
    counted = count
  elseif tonumber(last) ~= count then
    again = 1
  end
end
return { told, counted, again }
