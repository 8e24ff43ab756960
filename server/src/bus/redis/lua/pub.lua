-- PUB. ARGV: the nodes' key, the command (PUBLISH or SPUBLISH), the channel, then for each message its gen, seq, dedupe key,
-- attempt, payload. Answers 1 (published, now or before) or 0 (GONE) each.
local room = live()
if not room then
  return NEED_INIT
end

-- A key of another type fails here, before anything is written: a script that fails takes back nothing.
redis.call('ZCARD', LOG)
redis.call('HLEN', RB)

-- The log holds every decided seq above its floor `lf` that is no void.
local function remember(seq, payload)
  if #payload > LOG_BYTES_MAX then
    redis.call('HSET', H, 'lf', whole(math.max(seq, tonumber(redis.call('HGET', H, 'lf') or '0'))))
    return
  end
  redis.call('ZADD', LOG, seq, payload)
  local over = redis.call('ZCARD', LOG) - LOG_MAX
  if over > 0 then
    local dropped = redis.call('ZRANGE', LOG, over - 1, over - 1, 'WITHSCORES')
    redis.call('ZREMRANGEBYRANK', LOG, 0, over - 1)
    local floor = math.max(tonumber(dropped[2]), tonumber(redis.call('HGET', H, 'lf') or '0'))
    redis.call('HSET', H, 'lf', whole(floor))
    for _, reader in ipairs(redis.call('HKEYS', RB)) do
      if tonumber(reader) <= floor then
        redis.call('HDEL', RB, reader)
      end
    end
  end
end

local function publish(gen, seq, key, attempt, payload)
  if gen ~= room.gen then
    return 0
  end
  local waits = pending(seq)
  if waits then
    if waits.attempt ~= attempt or waits.voiding then
      return 0
    end
    redis.call('ZREM', P, waits.member)
    remember(tonumber(seq), payload)
    local text = string.sub(payload, 1, -2) .. ',"rw":{"base":' .. room.base .. ',"stable":' .. whole(stable(room))
    redis.call(ARGV[2], ARGV[3], vouched(ARGV[1], ARGV[3], text .. ',"mac":"') .. '}')
    return 1
  end
  -- A repeat of a publish whose reply was lost.
  local known = dedupe(key)
  return known and known.seq == tonumber(seq) and known.gen == gen and 1 or 0
end

local answers = {}
for first = 4, #ARGV, 5 do
  answers[#answers + 1] = publish(ARGV[first], ARGV[first + 1], ARGV[first + 2], ARGV[first + 3], ARGV[first + 4])
end
expire_new(LOG)
return answers
