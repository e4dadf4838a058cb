-- task, alias, expected ('' for any), json of the targets, mark, event, versions… → ok, alias revision, stand
local task, alias, expected, targets, mark, event = unpack(ARGV, 3, 8)
if not exists(task) then
  return {'unknown_task'}
end
local current = alias_revision(task, alias)
if expected ~= '' and tonumber(expected) ~= current then
  return {'conflict', current}
end
for at = 9, #ARGV do
  if redis.call('HEXISTS', TASK .. task, 'v:' .. ARGV[at]) == 0 then
    return {'unknown_version'}
  end
end
local number = change(task, mark, event)
redis.call('HSET', TASK .. task, 'a:' .. alias, number .. ' ' .. targets)
return {'ok', number, stand()}
