-- epoch, revision, mark ('' where it is not known) → ok, reset, ids of the tasks changed since, stand
local epoch, after, mark = ARGV[3], tonumber(ARGV[4]), ARGV[5]
local now = stand()
local lost = now[1] ~= epoch or now[2] < after
if not lost and mark ~= '' then
  -- Another change has that number now: Redis came back without the end of its history, and went on from there.
  lost = redis.call('HGET', MARKS, after) ~= mark
end
if lost then
  return {'ok', 1, {}, now}
end
return {'ok', 0, redis.call('ZRANGEBYSCORE', CHANGED, '(' .. after, '+inf'), now}
