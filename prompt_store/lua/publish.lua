-- task, version, size, json of the record, now, mark, event, bytes → ok, created, stand
local task, version, size, record, now, mark, event, bytes = unpack(ARGV, 3)
local created = 0
if exists(task) and field(task, 'v:' .. version) then
  if redis.call('GET', BLOB .. version) ~= bytes then
    redis.call('SET', BLOB .. version, bytes)
  end
else
  created = 1
  local blob = version .. ' ' .. task
  redis.call('ZADD', GARBAGE, now, blob)
  redis.call('SET', BLOB .. version, bytes)
  if not exists(task) then
    forget(task)
  end
  redis.call('ZADD', TASKS, 0, task)
  local number = prepare(task, mark, event)
  redis.call('HSET', TASK .. task,
    'deleted', '0', 'revision', number, 'v:' .. version, number .. ' ' .. size .. ' ' .. record)
  redis.call('ZREM', GARBAGE, blob)
  finish(task, number)
end
return {'ok', created, stand()}
