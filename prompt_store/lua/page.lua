-- after ('' for the first page), limit → ok, {id, fields, id, fields, …}, next or '', stand
local after, limit = ARGV[3], tonumber(ARGV[4])
local ids = redis.call('ZRANGEBYLEX', TASKS, after == '' and '-' or '(' .. after, '+', 'LIMIT', 0, limit + 1)
local found = {}
for at = 1, math.min(#ids, limit) do
  found[#found + 1] = ids[at]
  found[#found + 1] = redis.call('HGETALL', TASK .. ids[at])
end
return {'ok', found, #ids > limit and ids[limit] or '', stand()}
