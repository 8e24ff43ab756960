-- Users who came to a node or left it. KEYS: for each user the state that other software reads, and the nodes that hold the
-- user (hash, node to life). ARGV: channel, node, life, seconds to live; then for each user `+` (came), `=` (came, nobody is
-- told) or `-` (left) before the id. Answers how many nodes hold each user now.
local channel, node, life, seconds = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local function tell(kind, user)
  local time = redis.call('TIME')
  local ms = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
  redis.call('PUBLISH', channel, '{"type":"' .. kind .. '","userId":"' .. user .. '","timestamp":' .. ms .. '}')
end

local counts = {}
for i = 1, #KEYS, 2 do
  local state, nodes = KEYS[i], KEYS[i + 1]
  local change = ARGV[5 + (i - 1) / 2]
  local what, user = string.sub(change, 1, 1), string.sub(change, 2)
  if what ~= '-' then
    local is_new = what == '+' and redis.call('EXISTS', state) == 0
    redis.call('HSET', nodes, node, life)
    redis.call('EXPIRE', nodes, seconds)
    redis.call('SET', state, 'online', 'EX', seconds)
    if is_new then
      tell('user_online', user)
    end
  elseif redis.call('HGET', nodes, node) == life then
    redis.call('HDEL', nodes, node)
    if redis.call('HLEN', nodes) == 0 then
      redis.call('DEL', state)
      tell('user_offline', user)
    end
  end
  counts[#counts + 1] = redis.call('HLEN', nodes)
end
return counts
