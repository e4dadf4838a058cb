-- task, force ('1' or '0'), now, mark, event → ok, stand
local task, force, now, mark, event = unpack(ARGV, 3)
if not exists(task) then
  return {'unknown_task'}
end
local fields, aliases, versions = redis.call('HKEYS', TASK .. task), {}, {}
for _, name in ipairs(fields) do
  if string.sub(name, 1, 2) == 'a:' then
    aliases[#aliases + 1] = string.sub(name, 3)
  elseif string.sub(name, 1, 2) == 'v:' then
    versions[#versions + 1] = string.sub(name, 3)
  end
end
if force ~= '1' and #aliases > 0 then
  table.sort(aliases)
  return {'in_use', aliases[1]}
end
local number = change(task, mark, event)
redis.call('DEL', TASK .. task)
redis.call('HSET', TASK .. task, 'revision', number, 'deleted', '1')
redis.call('ZREM', TASKS, task)
for _, version in ipairs(versions) do
  redis.call('ZADD', GARBAGE, now, version)
end
return {'ok', stand()}
