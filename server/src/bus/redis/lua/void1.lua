-- VOID1. ARGV: gen, seq, the least age in ms. Answers OK, GONE, DECIDED, WAIT.
local room = live()
if not room then
  return NEED_INIT
end
if ARGV[1] ~= room.gen then
  return redis.status_reply('GONE')
end
local waits = pending(ARGV[2])
if not waits then
  return redis.status_reply('DECIDED')
end
if not waits.voiding then
  if now_ms() - waits.since < tonumber(ARGV[3]) then
    return redis.status_reply('WAIT')
  end
  redis.call('ZREM', P, waits.member)
  redis.call('ZADD', P, ARGV[2], waits.attempt .. ':1:' .. whole(waits.since) .. ':' .. ARGV[2] .. ':' .. waits.key)
  expire_new(P)
end
return redis.status_reply('OK')
