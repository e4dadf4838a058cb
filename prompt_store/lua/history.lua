-- task, limit → ok, {revision, json, revision, json, …}, newest first
local task, limit = ARGV[3], tonumber(ARGV[4])
local last = tonumber(redis.call('HGET', TASK .. task, 'revision') or 0)
local events, numbers = {}, {}
local found = redis.call('HGETALL', EVENTS .. task)
for at = 1, #found, 2 do
  local number = tonumber(found[at])
  if number <= last then
    numbers[#numbers + 1] = number
    events[number] = found[at + 1]
  end
end
if #numbers == 0 then
  return {'unknown_task'}
end
table.sort(numbers, function(a, b) return a > b end)
local shown = {}
for at = 1, math.min(limit, #numbers) do
  shown[#shown + 1] = numbers[at]
  shown[#shown + 1] = events[numbers[at]]
end
return {'ok', shown}
