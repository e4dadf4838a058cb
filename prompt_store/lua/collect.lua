-- before, limit → ok, how many blobs were removed, their bytes, whether there may be more
local before, limit = ARGV[3], tonumber(ARGV[4])
local found = redis.call('ZRANGEBYSCORE', GARBAGE, '-inf', before, 'LIMIT', 0, limit)
local count, bytes = 0, 0
for _, blob in ipairs(found) do
  local version, task = string.match(blob, '^(%x+) (.+)$')
  if not (exists(task) and field(task, 'v:' .. version)) then
    count = count + 1
    bytes = bytes + redis.call('STRLEN', BLOB .. version)
    redis.call('UNLINK', BLOB .. version)
  end
  redis.call('ZREM', GARBAGE, blob)
end
return {'ok', count, bytes, #found == limit and 1 or 0}
