-- The recent log. ARGV: after, before, limit, `oldest` or `newest`. Answers {gen, floor, 1 if the limit cut it short, payload,
-- readers, payload, readers, ...}, ascending; readers are user ids with blanks between.
local room = live()
if not room then
  return NEED_INIT
end
local after, before, limit = '(' .. ARGV[1], '(' .. ARGV[2], tonumber(ARGV[3])
local found
if ARGV[4] == 'oldest' then
  found = redis.call('ZRANGEBYSCORE', LOG, after, before, 'WITHSCORES', 'LIMIT', 0, limit + 1)
else
  found = redis.call('ZREVRANGEBYSCORE', LOG, before, after, 'WITHSCORES', 'LIMIT', 0, limit + 1)
end
local count = #found / 2
local cut = count > limit
if cut then
  count = limit
end
local answer = { tonumber(room.gen), tonumber(redis.call('HGET', H, 'lf') or '0'), cut and 1 or 0 }
for index = 1, count do
  local at = ARGV[4] == 'oldest' and index or count + 1 - index
  answer[#answer + 1] = found[2 * at - 1]
  answer[#answer + 1] = redis.call('HGET', RB, found[2 * at]) or ''
end
return answer
