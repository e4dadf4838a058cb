-- What every script begins with: the names of the keys, the opening of the store, and one way to change it.
--
-- KEYS[1]  the store's hash: epoch, revision, schema
-- ARGV[1]  the prefix of all keys
-- ARGV[2]  the epoch of the store, if there is none yet
--
--   <prefix>store          hash    epoch, revision, schema
--   <prefix>tasks          zset    ids of the tasks that are not deleted, all with score 0: ordered by their bytes
--   <prefix>changed        zset    every task's id, tombstones too, by the revision of its last change
--   <prefix>marks          list    a random mark for each of the latest changes, newest first
--   <prefix>task:<id>      hash    revision, deleted, v:<version> = "<revision> <size> <json>",
--                                  a:<alias> = "<revision> <json of the targets>"
--   <prefix>events:<id>    list    "<revision> <json>", newest first
--   <prefix>blob:<version> string  the prompt file
--   <prefix>garbage        zset    versions that no task has, by the time when that began
--   <prefix>changes        channel the revision of each change
--
-- A script runs alone and whole, and its writes reach the log as one transaction. The first write of each is a
-- command that Redis refuses when it is out of memory or read-only: it is all or nothing then, too.

local P = ARGV[1]
local STORE, TASKS, CHANGED, MARKS, GARBAGE = P .. 'store', P .. 'tasks', P .. 'changed', P .. 'marks', P .. 'garbage'
local TASK, EVENTS, BLOB = P .. 'task:', P .. 'events:', P .. 'blob:'
local MARKS_KEPT, EVENTS_KEPT = 10000, 1000

-- epoch and revision; makes the store when it is not there
local function open()
  local found = redis.call('HMGET', STORE, 'epoch', 'revision', 'schema')
  if not found[1] then
    -- What is left of a store whose hash alone was lost must not be numbered again.
    local last = redis.call('ZREVRANGE', CHANGED, 0, 0, 'WITHSCORES')
    local revision = last[2] and tonumber(last[2]) or 0
    redis.call('HSET', STORE, 'epoch', ARGV[2], 'revision', revision, 'schema', 1)
    return ARGV[2], revision
  end
  if tonumber(found[3]) ~= 1 then
    return nil
  end
  return found[1], tonumber(found[2])
end

-- where the history stands, as the last part of every answer
local function stand()
  local epoch, revision = open()
  return {epoch, revision, redis.call('LINDEX', MARKS, 0) or ''}
end

local function exists(task)
  return redis.call('HGET', TASK .. task, 'deleted') == '0'
end

-- the alias's revision, 0 when there is none
local function alias_revision(task, alias)
  local found = redis.call('HGET', TASK .. task, 'a:' .. alias)
  return found and tonumber(string.match(found, '^%d+')) or 0
end

-- count one change of a task and write it into its history; the new revision
local function change(task, mark, event)
  local number = redis.call('HINCRBY', STORE, 'revision', 1)
  redis.call('ZADD', CHANGED, number, task)
  redis.call('LPUSH', MARKS, mark)
  redis.call('LTRIM', MARKS, 0, MARKS_KEPT - 1)
  redis.call('LPUSH', EVENTS .. task, number .. ' ' .. event)
  redis.call('LTRIM', EVENTS .. task, 0, EVENTS_KEPT - 1)
  redis.call('HSET', TASK .. task, 'revision', number)
  -- A user without rights on the channel is refused here, when half is written: nothing rests on the message.
  redis.pcall('PUBLISH', P .. 'changes', number)
  return number
end

if not open() then
  return {'schema'}
end
