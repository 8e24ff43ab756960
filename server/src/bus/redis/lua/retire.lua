-- RETIRE. ARGV: gen. Answers OK: the room is not live under that gen any more.
local room = live()
if not room then
  return NEED_INIT
end
if ARGV[1] == room.gen then
  redis.call('HSET', H, 'live', '0', 'tok', '')
end
return redis.status_reply('OK')
