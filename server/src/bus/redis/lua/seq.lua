-- SEQ. ARGV: for each message its dedupe key, attempt, timestamp. Answers {kind, gen, seq, timestamp or age} each: 1 MINE, 2 WAIT,
-- 3 DONE, 4 BUSY.
local room = live()
if not room then
  return NEED_INIT
end
local now = now_ms()
local gen = tonumber(room.gen)
local lowest = oldest()
local halves = redis.call('HMGET', H, 'young', 'given')
local young, given = halves[1] == '1' and D1 or D0, tonumber(halves[2] or '0')

-- Every DEDUPE seqs the old half goes, apart from what is pending, and becomes the young one.
local function rotate()
  local old = young == D0 and D1 or D0
  local kept = {}
  for _, member in ipairs(redis.call('ZRANGE', P, 0, -1)) do
    local seq, key = string.match(member, '^%d+:%d:%d+:(%d+):(.*)$')
    local entry = redis.call('HGET', old, key)
    if entry and string.match(entry, '^%d+') == seq then
      kept[#kept + 1] = { key, entry }
    end
  end
  redis.call('DEL', old)
  for _, entry in ipairs(kept) do
    redis.call('HSET', old, entry[1], entry[2])
  end
  young, given = old, 0
end

local function sequence(key, attempt, timestamp)
  local known = dedupe(key)
  if known then
    local waits = tonumber(known.gen) == gen and pending(known.seq)
    if not waits then
      return { 3, tonumber(known.gen), known.seq, known.timestamp }
    elseif waits.attempt == attempt and not waits.voiding then
      return { 1, gen, known.seq, known.timestamp }
    end
    return { 2, gen, known.seq, math.max(now - waits.since, 0) }
  end
  if lowest and room.seq - (lowest.seq - 1) >= PENDING_MAX then
    return { 4, gen, lowest.seq, math.max(now - lowest.since, 0) }
  end
  if given >= DEDUPE then
    rotate()
  end
  given = given + 1
  room.seq = room.seq + 1
  local seq = whole(room.seq)
  redis.call('ZADD', P, seq, attempt .. ':0:' .. whole(now) .. ':' .. seq .. ':' .. key)
  redis.call('HSET', young, key, seq .. ':' .. room.gen .. ':' .. timestamp)
  lowest = lowest or { since = now, seq = room.seq }
  return { 1, gen, room.seq, tonumber(timestamp) }
end

local answers = {}
for first = 1, #ARGV, 3 do
  answers[#answers + 1] = sequence(ARGV[first], ARGV[first + 1], ARGV[first + 2])
end
redis.call('HSET', H, 'seq', whole(room.seq), 'young', young == D1 and '1' or '0', 'given', whole(given))
if redis.call('TTL', H) < ROOM_TTL / 2 then
  redis.call('EXPIRE', H, ROOM_TTL)
  for _, key in ipairs({ P, D0, D1, LOG, RB }) do
    redis.call('EXPIRE', key, REST_TTL)
  end
end
expire_new(P)
expire_new(young)
return answers
