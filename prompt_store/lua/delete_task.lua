-- task, force ('1' or '0'), now, mark, event → ok, stand
local task, force, now, mark, event = unpack(ARGV, 3)
if not exists(task) then
  return {'unknown_task'}
end
local versions, aliases = names(task)
if force ~= '1' and #aliases > 0 then
  return {'in_use', aliases[1]}
end
for _, version in ipairs(versions) do
  redis.call('ZADD', GARBAGE, now, version .. ' ' .. task)
end
local number = prepare(task, mark, event)
redis.call('HSET', TASK .. task, 'revision', number, 'deleted', '1')
redis.call('ZREM', TASKS, task)
forget(task)
finish(task, number)
return {'ok', stand()}
