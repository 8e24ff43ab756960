-- The nodes' leases. KEYS: last beats (zset), leases (hash), dead lives (zset, score = when to be given out), what is known
-- of this memory (hash). ARGV: what (`beat`, `take`, `leave`, `claim`, `reaped`), node, life, store, card, a name for this
-- memory, whether the node is announcing itself anew, a life that may be taken over. For `claim` and `reaped` the life is
-- the dead one, as it was given out.
-- A lease's value: life, store, card (JSON), one a line. A dead one: node, a space, life.
local BEATS, LEASES, DEAD, MEMORY = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local what, node, life, store, card = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local SILENT, KEPT, CLAIM, LEFT, GAP = 25000, 60000, 10000, 5000, 10000

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function whole(number)
  return string.format('%.0f', number)
end

if what == 'claim' then
  return redis.call('ZADD', DEAD, 'XX', 'CH', whole(now + CLAIM), life)
elseif what == 'reaped' then
  return redis.call('ZREM', DEAD, life)
end

local function lease_of(name)
  local value = redis.call('HGET', LEASES, name)
  if not value then
    return nil
  end
  local its_life, its_store, its_card = string.match(value, '^(.-)\n(.-)\n(.*)$')
  return { life = its_life, store = its_store, card = its_card, boot = string.match(its_life, '^[^.]*') }
end

local function bury(name, dead_life, due)
  redis.call('ZADD', DEAD, whole(due), name .. ' ' .. dead_life)
  redis.call('HDEL', LEASES, name)
  redis.call('ZREM', BEATS, name)
end

redis.call('HSETNX', MEMORY, 'name', ARGV[6])
-- Where nobody beat for a while, Redis stood still, or its clock jumped: nobody is judged by that.
local clock = tonumber(redis.call('HGET', MEMORY, 'clock') or now)
local calm = tonumber(redis.call('HGET', MEMORY, 'calm') or 0)
if now - clock > GAP or now < clock - 1000 then
  calm = now + SILENT
  redis.call('HSET', MEMORY, 'calm', whole(calm))
  for _, name in ipairs(redis.call('ZRANGE', BEATS, '(' .. whole(now), '+inf', 'BYSCORE')) do
    redis.call('ZADD', BEATS, whole(now), name)
  end
end
redis.call('HSET', MEMORY, 'clock', whole(now))

local held = lease_of(node)
if held and held.life == life then
  if what == 'leave' then
    bury(node, life, now + LEFT)
    return 1
  end
  redis.call('ZADD', BEATS, whole(now), node)
end
if now >= calm then
  for _, name in ipairs(redis.call('ZRANGE', BEATS, '-inf', whole(now - SILENT), 'BYSCORE')) do
    local silent = lease_of(name)
    if silent then
      bury(name, silent.life, now)
    else
      redis.call('ZREM', BEATS, name)
    end
  end
end

local boot = string.match(life, '^[^.]*')
local verdict, other = 'lost', nil
held = lease_of(node)
if held and held.life == life then
  verdict = 'held'
elseif held and held.boot ~= boot and held.life ~= ARGV[8] then
  verdict, other = 'taken', node
elseif what == 'take' then
  verdict = 'held'
  local all = redis.call('HGETALL', LEASES)
  for i = 1, #all, 2 do
    if all[i] ~= node and lease_of(all[i]).store ~= store then
      verdict, other = 'store', all[i]
    end
  end
  if verdict == 'held' then
    if held then
      bury(node, held.life, held.boot == boot and now + KEPT or now)
    end
    redis.call('HSET', LEASES, node, life .. '\n' .. store .. '\n' .. card)
    redis.call('ZADD', BEATS, whole(now), node)
  end
end

if ARGV[7] == '1' then
  local own = node .. ' ' .. boot .. '.'
  for _, dead in ipairs(redis.call('ZRANGE', DEAD, 0, -1)) do
    if string.sub(dead, 1, #own) == own then
      redis.call('ZADD', DEAD, whole(now + KEPT), dead)
    end
  end
end
local dead = ''
if verdict == 'held' and what == 'beat' then
  dead = redis.call('ZRANGE', DEAD, '-inf', whole(now), 'BYSCORE', 'LIMIT', 0, 1)[1] or ''
  if dead ~= '' then
    redis.call('ZADD', DEAD, whole(now + CLAIM), dead)
  end
end
-- Of whoever stands in the way: card, life, last beat.
local whose = other and lease_of(other)
local server = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)') or ''
return {
  verdict, whose and whose.card or '', whose and whose.life or '', other and redis.call('ZSCORE', BEATS, other) or '',
  whole(now), redis.call('HGET', MEMORY, 'name') .. server, redis.call('HLEN', LEASES), dead,
}
