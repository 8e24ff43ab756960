-- The start-up check: whether this user may do all that the scripts do. KEYS are those of a room that no client can name.
-- Answers the errors, one text each.
local wrong = {}
local function try(command, ...)
  local answer = redis.pcall(command, ...)
  if type(answer) == 'table' and answer.err then
    wrong[#wrong + 1] = string.lower(command) .. ': ' .. answer.err
  end
end
try('DEL', H, P, D0, D1, LOG, RB)
try('HSET', H, 'a', '1')
try('HGET', H, 'a')
try('HMGET', H, 'a')
try('HKEYS', H)
try('HDEL', H, 'a')
try('EXPIRE', H, 1)
try('TTL', H)
try('ZADD', P, 1, '1')
try('ZRANGE', P, 0, 0)
try('ZRANGEBYSCORE', P, 1, 1)
try('ZREVRANGEBYSCORE', P, 1, 1)
try('ZCARD', P)
try('ZREM', P, '1')
try('ZREMRANGEBYRANK', LOG, 0, 0)
try('TIME')
try('INFO', 'replication')
try(ARGV[1], ARGV[2], '')
try('DEL', H, P)
return wrong
