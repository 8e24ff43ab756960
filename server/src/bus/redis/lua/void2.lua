-- VOID2. ARGV: the nodes' key, the room, gen, seq. Answers OK, also where the seq is decided already, or GONE.
local room = live()
if not room then
  return NEED_INIT
end
if ARGV[3] ~= room.gen then
  return redis.status_reply('GONE')
end
local waits = pending(ARGV[4])
if waits then
  redis.call('ZREM', P, waits.member)
  for _, half in ipairs({ D0, D1 }) do
    local entry = redis.call('HGET', half, waits.key)
    if entry and string.match(entry, '^%d+') == ARGV[4] then
      redis.call('HDEL', half, waits.key)
    end
  end
  control(ARGV[1], ARGV[2], room.gen, room.base, ARGV[4])
end
return redis.status_reply('OK')
