-- What every script begins with: the names of the keys, the opening of the store, and one way to change it.
--
-- KEYS[1]  the store's hash: epoch, revision, schema
-- ARGV[1]  the prefix of all keys
-- ARGV[2]  the epoch of the store, if there is none yet
--
--   <prefix>store          hash    epoch, revision, schema
--   <prefix>tasks          zset    ids of the tasks that are not deleted, all with score 0: ordered by their bytes
--   <prefix>changed        zset    every task's id, tombstones too, by the revision of its last change
--   <prefix>marks          hash    a random mark for each of the latest changes, by revision
--   <prefix>task:<id>      hash    revision, deleted, v:<version> = "<revision> <size> <json>",
--                                  a:<alias> = "<revision> <json of the targets>"; an empty one is gone
--   <prefix>events:<id>    hash    json, by revision; those above the task's revision never came to be
--   <prefix>blob:<version> string  the prompt file
--   <prefix>garbage        zset    "<version> <id>" of blobs that may not be needed, by the time since when
--   <prefix>changes        channel the revision of each change
--
-- A script runs alone and whole. Two things are kept in mind all the same:
--
-- * Its first write is a command that Redis refuses when it is out of memory or read-only: it is all or nothing then.
-- * Its writes reach the log as one transaction. Redis cuts a log that a crash tore inside a transaction behind the last
--   whole command, appends the next transaction, and after another start runs both as one. The remedy is
--   `redis-check-aof --fix` before each start (docs/redis.md). Without it, this keeps the harm small: a change shows by one
--   command, the HSET of its task's hash; what comes before it is written in absolute terms, so that the next change
--   overwrites it, and what comes after it only tidies up. So a torn publish is never half there; but a change that was
--   torn behind that command comes to be at the second start, unseen by those who checked theirs against a store without.

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
  return {epoch, revision, redis.call('HGET', MARKS, revision) or ''}
end

local function exists(task)
  return redis.call('HGET', TASK .. task, 'deleted') == '0'
end

-- a version's record or an alias's line; nil when there is none
local function field(task, name)
  local found = redis.call('HGET', TASK .. task, name)
  return found and found ~= '' and found or nil
end

-- the alias's revision, 0 when there is none
local function alias_revision(task, alias)
  local found = field(task, 'a:' .. alias)
  return found and tonumber(string.match(found, '^%d+')) or 0
end

-- everything of a change that nobody sees before its task's hash does; the change's revision
local function prepare(task, mark, event)
  local _, last = open()
  local number = last + 1
  redis.call('HSET', STORE, 'revision', number)
  redis.call('ZADD', CHANGED, number, task)
  redis.call('HSET', MARKS, number, mark)
  redis.call('HSET', EVENTS .. task, number, event)
  return number
end

-- what is left to do when the change is there
local function finish(task, number)
  redis.call('HDEL', MARKS, number - MARKS_KEPT)
  if redis.call('HLEN', EVENTS .. task) > EVENTS_KEPT then
    local oldest = number
    for _, revision in ipairs(redis.call('HKEYS', EVENTS .. task)) do
      oldest = math.min(oldest, tonumber(revision))
    end
    redis.call('HDEL', EVENTS .. task, oldest)
  end
  -- Only a hint: a user who may not use the channel changes the store all the same.
  redis.pcall('PUBLISH', P .. 'changes', number)
end

-- the names of a task's versions and aliases
local function names(task)
  local versions, aliases = {}, {}
  local fields = redis.call('HGETALL', TASK .. task)
  for at = 1, #fields, 2 do
    local kind = string.sub(fields[at], 1, 2)
    if fields[at + 1] ~= '' and (kind == 'v:' or kind == 'a:') then
      local found = kind == 'v:' and versions or aliases
      found[#found + 1] = string.sub(fields[at], 3)
    end
  end
  table.sort(aliases)
  return versions, aliases
end

-- take versions and aliases out of a hash that says already that they are gone
local function forget(task)
  local versions, aliases = names(task)
  for _, version in ipairs(versions) do
    redis.call('HDEL', TASK .. task, 'v:' .. version)
  end
  for _, alias in ipairs(aliases) do
    redis.call('HDEL', TASK .. task, 'a:' .. alias)
  end
end

if not open() then
  return {'schema'}
end
