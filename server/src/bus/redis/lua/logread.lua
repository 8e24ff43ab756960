-- A stored receipt, for the log's readers. ARGV: gen, seq, the user. Answers OK, whatever became of it.
local READERS_BYTES_MAX = 8192
local room = live()
if room and room.gen == ARGV[1] and redis.call('ZRANGEBYSCORE', LOG, ARGV[2], ARGV[2])[1] then
  local readers = redis.call('HGET', RB, ARGV[2]) or ''
  local known = string.find(' ' .. readers .. ' ', ' ' .. ARGV[3] .. ' ', 1, true)
  if not known and #readers < READERS_BYTES_MAX then
    redis.call('HSET', RB, ARGV[2], readers == '' and ARGV[3] or readers .. ' ' .. ARGV[3])
    expire_new(RB)
  end
end
return redis.status_reply('OK')
