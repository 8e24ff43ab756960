-- Who is in a room. KEYS: the roster. ARGV: how many users to name at most. Answers the count, then id and name of each.
local answer = { redis.call('HLEN', KEYS[1]) }
local cursor, named, most = '0', 0, tonumber(ARGV[1])
repeat
  local page = redis.call('HSCAN', KEYS[1], cursor, 'COUNT', most)
  cursor = page[1]
  for i = 1, #page[2], 2 do
    if named < most then
      named = named + 1
      answer[#answer + 1] = page[2][i]
      answer[#answer + 1] = string.match(page[2][i + 1], '\n(.*)$')
    end
  end
until cursor == '0' or named >= most
return answer
