-- Takes what a dead life left behind out of a part of a roster. KEYS: the roster, the count last told. ARGV: the command
-- (PUBLISH or SPUBLISH), the channel, the room, node, life, the most users of a room that is told who goes (0: no limit),
-- the cursor. Answers the next cursor and how many memberships were removed. All nodes are told, also the one that asks.
local ROSTER, TOLD = KEYS[1], KEYS[2]
local room, own, limit = ARGV[3], ARGV[4] .. '/' .. ARGV[5], tonumber(ARGV[6])

local time = redis.call('TIME')
local ms = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local function tell(text)
  redis.call(ARGV[1], ARGV[2], text)
end

local removed, is_large = 0, false
local page = redis.call('HSCAN', ROSTER, ARGV[7], 'COUNT', 200)
for i = 1, #page[2], 2 do
  local user, value = page[2][i], page[2][i + 1]
  local nodes, name = string.match(value, '^([^\n]*)\n(.*)$')
  local kept, was_there = {}, false
  for entry in string.gmatch(nodes, '[^ ]+') do
    if entry == own then
      was_there = true
    else
      kept[#kept + 1] = entry
    end
  end
  if was_there then
    removed = removed + 1
  end
  if was_there and #kept > 0 then
    redis.call('HSET', ROSTER, user, table.concat(kept, ' ') .. '\n' .. name)
  elseif was_there then
    local before = redis.call('HLEN', ROSTER)
    redis.call('HDEL', ROSTER, user)
    if limit > 0 and before > limit then
      is_large = true
    else
      tell('{"type":"user_left","userId":"' .. user .. '","username":' .. cjson.encode(name) .. ',"roomId":"' .. room
        .. '","timestamp":' .. ms .. '}')
    end
  end
end
if is_large then
  local count = redis.call('HLEN', ROSTER)
  redis.call('SET', TOLD, count, 'PX', 1000)
  tell('{"type":"members","roomId":"' .. room .. '","count":' .. count .. '}')
end
return { page[1], removed }
