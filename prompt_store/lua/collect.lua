-- before, limit → ok, how many blobs were removed, their bytes, whether there may be more
local before, limit = ARGV[3], tonumber(ARGV[4])
local versions = redis.call('ZRANGEBYSCORE', GARBAGE, '-inf', before, 'LIMIT', 0, limit)
local bytes = 0
for _, version in ipairs(versions) do
  bytes = bytes + redis.call('STRLEN', BLOB .. version)
  redis.call('UNLINK', BLOB .. version)
  redis.call('ZREM', GARBAGE, version)
end
return {'ok', #versions, bytes, #versions == limit and 1 or 0}
