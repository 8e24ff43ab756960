-- FINISH. ARGV: the nodes' key, the room, the token, gen, the last decided seq, then for each dedupe entry its key and
-- `seq:gen:timestamp`. Answers OK, LIVE, REFUSED.
if live() then
  return redis.status_reply('LIVE')
end
local begun = redis.call('HMGET', H, 'srv', 'tok')
if begun[1] ~= replid() or begun[2] ~= ARGV[3] or ARGV[3] == '' then
  return redis.status_reply('REFUSED')
end
local gen, last = ARGV[4], ARGV[5]
local base = whole(tonumber(last) + 1)
-- `young` is D0, so what is loaded into D1 stays for D more seqs, as ORDERING.md promises after a re-init.
for first = 6, #ARGV, 2 do
  redis.call('HSET', D1, ARGV[first], ARGV[first + 1])
end
redis.call('HSET', H, 'live', '1', 'tok', '', 'gen', gen, 'base', base, 'seq', last, 'young', '0', 'given', '0', 'lf', last)
redis.call('EXPIRE', H, ROOM_TTL)
expire_new(D1)
control(ARGV[1], ARGV[2], gen, base)
return redis.status_reply('OK')
