-- task, alias, expected ('' for any), mark, event → ok, stand
local task, alias, expected, mark, event = unpack(ARGV, 3)
if not exists(task) then
  return {'unknown_task'}
end
local current = alias_revision(task, alias)
if expected ~= '' and tonumber(expected) ~= current then
  return {'conflict', current}
end
if current == 0 then
  return {'unknown_alias'}
end
local number = prepare(task, mark, event)
redis.call('HSET', TASK .. task, 'revision', number, 'a:' .. alias, '')
redis.call('HDEL', TASK .. task, 'a:' .. alias)
finish(task, number)
return {'ok', stand()}
