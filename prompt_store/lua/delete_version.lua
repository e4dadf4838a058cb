-- task, version, now, mark, event → ok, stand
local task, version, now, mark, event = unpack(ARGV, 3)
if not exists(task) then
  return {'unknown_task'}
end
local _, aliases = names(task)
for _, alias in ipairs(aliases) do
  -- A version is 64 digits of hex, which stand in an alias's JSON only where it leads to that version.
  if string.find(field(task, 'a:' .. alias), '"' .. version .. '"', 1, true) then
    return {'in_use', alias}
  end
end
if not field(task, 'v:' .. version) then
  return {'unknown_version'}
end
redis.call('ZADD', GARBAGE, now, version .. ' ' .. task)
local number = prepare(task, mark, event)
redis.call('HSET', TASK .. task, 'revision', number, 'v:' .. version, '')
redis.call('HDEL', TASK .. task, 'v:' .. version)
finish(task, number)
return {'ok', stand()}
