-- epoch, revision, mark ('' where it is not known) → ok, reset, ids of the tasks changed since, stand
local epoch, after, mark = ARGV[3], tonumber(ARGV[4]), ARGV[5]
local now = stand()
local lost = now[1] ~= epoch or now[2] < after
if not lost and mark ~= '' then
  -- Another change has that number now: Redis came back without the end of its history, and went on from there. Of a
  -- revision that is too long ago, nothing can be said.
  local found = redis.call('HGET', MARKS, after)
  lost = found and found ~= mark or not found and now[2] - after < MARKS_KEPT
end
if lost then
  return {'ok', 1, {}, now}
end
return {'ok', 0, redis.call('ZRANGEBYSCORE', CHANGED, '(' .. after, '+inf'), now}
