-- task, version, now, mark, event → ok, stand
local task, version, now, mark, event = unpack(ARGV, 3)
if not exists(task) then
  return {'unknown_task'}
end
local fields = redis.call('HGETALL', TASK .. task)
for at = 1, #fields, 2 do
  -- A version is 64 digits of hex, which stand in an alias's JSON only where it leads to that version.
  if string.sub(fields[at], 1, 2) == 'a:' and string.find(fields[at + 1], '"' .. version .. '"', 1, true) then
    return {'in_use', string.sub(fields[at], 3)}
  end
end
if redis.call('HEXISTS', TASK .. task, 'v:' .. version) == 0 then
  return {'unknown_version'}
end
change(task, mark, event)
redis.call('HDEL', TASK .. task, 'v:' .. version)
redis.call('ZADD', GARBAGE, now, version)
return {'ok', stand()}
