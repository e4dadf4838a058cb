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
  if not field(task, 'v:' .. ARGV[at]) then
    return {'unknown_version'}
  end
end
local number = prepare(task, mark, event)
redis.call('HSET', TASK .. task, 'revision', number, 'a:' .. alias, number .. ' ' .. targets)
finish(task, number)
return {'ok', number, stand()}
