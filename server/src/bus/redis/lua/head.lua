-- HEAD. Answers {gen, base, seq, stable, lowest pending seq or 0, its age in ms}, or ABSENT and the server's replication
-- id where there is no trace of the room.
local room = live()
if not room then
  if redis.call('EXISTS', H) == 0 then
    return redis.status_reply('ABSENT ' .. replid())
  end
  return NEED_INIT
end
local first = oldest()
local seq, age = 0, 0
if first then
  seq, age = first.seq, math.max(now_ms() - first.since, 0)
end
return { tonumber(room.gen), tonumber(room.base), room.seq, first and seq - 1 or room.seq, seq, age }
