-- task, version, from, how many → ok, so many bytes from there, how many there are in all
-- None when they are lost or of another length, for these may be too many to send.
local task, version, from, many = unpack(ARGV, 3)
if not exists(task) then
  return {'unknown_task'}
end
local record = field(task, 'v:' .. version)
if not record then
  return {'unknown_version'}
end
local size = tonumber(string.match(record, '^%d+ (%d+)'))
if redis.call('STRLEN', BLOB .. version) ~= size then
  return {'corrupt'}
end
return {'ok', redis.call('GETRANGE', BLOB .. version, from, from + many - 1), size}
