-- What every script of a room begins with; put before each by bus/redis/scripts.rs. ORDERING.md, Redis.
--
-- KEYS: the room's h, p, d0, d1, log, rb. Numbers stay below 2^53 (seq and time) so that Lua holds them exactly; attempts
-- and tokens are 64 bits wide and stay text. A pending seq is the member `attempt:voiding:since:seq:dedupe key` of p,
-- scored by seq; an entry of d0 and d1 is `seq:gen:timestamp` under the dedupe key `user/client id`.
local H, P, D0, D1, LOG, RB = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]

local PENDING_MAX = 2048
local DEDUPE = 2048
local LOG_MAX = 256
local LOG_BYTES_MAX = 4096
local BEGIN_LEASE_MS = 2000
-- A room that nobody writes to is forgotten after one to two days; its next message begins a generation. The hash goes
-- first: a room without its dedupe window must not be live.
local ROOM_TTL = 172800
local REST_TTL = 176400

-- A key that was just made outlives the hash.
local function expire_new(key)
  if redis.call('TTL', key) == -1 then
    redis.call('EXPIRE', key, REST_TTL)
  end
end

local NEED_INIT = redis.status_reply('NEED_INIT')

local function whole(number)
  return string.format('%.0f', number)
end

local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- A room is live only on the server that initialised it: not after a failover, nor on a restored copy.
local function replid()
  return string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
end

local function live()
  local room = redis.call('HMGET', H, 'live', 'srv', 'gen', 'base', 'seq')
  if room[1] ~= '1' or room[2] ~= replid() then
    return nil
  end
  return { gen = room[3], base = room[4], seq = tonumber(room[5]) }
end

-- The member of a pending seq, taken apart; nil if the seq is decided.
local function pending(seq)
  local member = redis.call('ZRANGEBYSCORE', P, seq, seq)[1]
  if not member then
    return nil
  end
  local attempt, voiding, since, found, key = string.match(member, '^(%d+):(%d):(%d+):(%d+):(.*)$')
  return { member = member, attempt = attempt, voiding = voiding == '1', since = tonumber(since), seq = tonumber(found), key = key }
end

local function oldest()
  local member = redis.call('ZRANGE', P, 0, 0)[1]
  if not member then
    return nil
  end
  local since, seq = string.match(member, '^%d+:%d:(%d+):(%d+):')
  return { since = tonumber(since), seq = tonumber(seq) }
end

local function stable(room)
  local first = oldest()
  return first and first.seq - 1 or room.seq
end

local function dedupe(key)
  local entry = redis.call('HGET', D0, key) or redis.call('HGET', D1, key)
  if not entry then
    return nil
  end
  local seq, gen, timestamp = string.match(entry, '^(%d+):(%d+):(%d+)$')
  return { seq = tonumber(seq), gen = gen, timestamp = tonumber(timestamp) }
end

-- Vouches with the nodes' common key for a text on a channel, so that what others publish is told apart.
local function vouched(key, channel, text)
  return text .. redis.sha1hex(key .. redis.sha1hex(key .. channel .. ' ' .. text)) .. '"}'
end

local function control(key, room, gen, base, void)
  local text = '{"room":"' .. room .. '","gen":' .. gen .. ',"base":' .. base
  if void then
    text = text .. ',"void":' .. void
  end
  redis.call('PUBLISH', 'rw:ctl', vouched(key, 'rw:ctl', text .. ',"mac":"'))
end
