-- task, version, size, json of the record, mark, event, bytes → ok, created, stand
local task, version, size, record, mark, event, bytes = unpack(ARGV, 3)
local created = 0
if redis.call('HEXISTS', TASK .. task, 'v:' .. version) == 0 then
  created = 1
  local number = change(task, mark, event)
  redis.call('HSET', TASK .. task, 'deleted', '0', 'v:' .. version, number .. ' ' .. size .. ' ' .. record)
  redis.call('ZADD', TASKS, 0, task)
  redis.call('ZREM', GARBAGE, version)
end
if redis.call('GET', BLOB .. version) ~= bytes then
  redis.call('SET', BLOB .. version, bytes)
end
return {'ok', created, stand()}
