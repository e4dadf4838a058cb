-- task, version, size, json of the record, now, mark, event, bytes → ok, created, stand
local task, version, size, record, now, mark, event, bytes = unpack(ARGV, 3)
local created = 0

-- Whether the version's record is there and whole, as `records.py` asks: a damaged one is written anew.
local function stands()
  local found = exists(task) and field(task, 'v:' .. version) or ''
  local length, text = string.match(found, '^%d+ (%d+) (.+)$')
  if length ~= size then
    return false
  end
  local parsed, known = pcall(cjson.decode, text)
  return parsed and type(known) == 'table' and type(known.method) == 'string'
    and type(known.published_at) == 'number' and known.published_at >= 0 and known.published_at < 253402300800
    and type(known.labels) == 'number' and known.labels >= 0 and known.labels % 1 == 0
end

if stands() then
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
