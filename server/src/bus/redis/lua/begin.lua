-- BEGIN. ARGV: the token. Answers OK, LIVE, WAIT.
if live() then
  return redis.status_reply('LIVE')
end
local now, server = now_ms(), replid()
local begun = redis.call('HMGET', H, 'srv', 'tok', 'tok_at')
if begun[1] == server and begun[2] and begun[2] ~= '' and begun[2] ~= ARGV[1] and now - tonumber(begun[3] or '0') < BEGIN_LEASE_MS then
  return redis.status_reply('WAIT')
end
redis.call('DEL', H, P, D0, D1, LOG, RB)
redis.call('HSET', H, 'srv', server, 'live', '0', 'tok', ARGV[1], 'tok_at', whole(now))
redis.call('EXPIRE', H, ROOM_TTL)
return redis.status_reply('OK')
