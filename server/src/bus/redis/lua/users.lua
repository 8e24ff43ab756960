-- Users who came to a node or left it. KEYS: for each user the state that other software reads, and the nodes that hold the
-- user (hash, node to life). ARGV: channel, node, life, seconds to live; then for each user `+` (came), `=` (came, nobody is
-- told) or `-` (left) before the id. Answers for each user how many nodes hold it now, or -1.
local channel, node, life, seconds = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local function tell(kind, user)
  local time = redis.call('TIME')
  local ms = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
  redis.call('PUBLISH', channel, '{"type":"' .. kind .. '","userId":"' .. user .. '","timestamp":' .. ms .. '}')
end

-- How many nodes hold the user now; -1 where a key of another application stands in the place of ours, which is left alone.
local function apply(state, nodes, what, user)
  if what ~= '-' then
    local is_new = what == '+' and redis.call('EXISTS', state) == 0
    if type(redis.pcall('HSET', nodes, node, life)) == 'table' then
      return -1
    end
    redis.call('EXPIRE', nodes, seconds)
    redis.call('SET', state, 'online', 'EX', seconds)
    if is_new then
      tell('user_online', user)
    end
    return redis.call('HLEN', nodes)
  end
  local held = redis.pcall('HGET', nodes, node)
  if type(held) == 'table' then
    return -1
  end
  if held == life then
    redis.call('HDEL', nodes, node)
    if redis.call('HLEN', nodes) == 0 then
      redis.call('DEL', state)
      tell('user_offline', user)
    end
  end
  return redis.call('HLEN', nodes)
end

local counts = {}
for i = 1, #KEYS, 2 do
  local change = ARGV[5 + (i - 1) / 2]
  counts[#counts + 1] = apply(KEYS[i], KEYS[i + 1], string.sub(change, 1, 1), string.sub(change, 2))
end
return counts
