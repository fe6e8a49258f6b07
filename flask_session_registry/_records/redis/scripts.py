"""The Lua scripts that read and write user sessions in Redis.

Each is atomic, and touches the keys of one shard only. Arguments: the base of the shard's keys,
the grace period in milliseconds, then those of the script.
"""

from __future__ import annotations

_READ = """
local base = ARGV[1]

-- An unreadable session counts as lost.
local function read(text)
    local is_text, session = pcall(cjson.decode, text or '')
    if is_text and type(session) == 'table' and session.id and session.user_id then
        return session.due_at and session or nil
    end
end
"""

#: Writing a session or a tombstone, with every index that leads to it.
_WRITE = (
    _READ
    + """
local grace = tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local expirations, last = {}, {}

-- Append a session to one index and remove it from another.
local function move(id, to, from)
    redis.call('ZREM', from, id)
    local found = last[to] or redis.call('ZREVRANGE', to, 0, 0, 'WITHSCORES')[2] or 0
    last[to] = math.max(now, tonumber(found) + 1)
    redis.call('ZADD', to, last[to], id)
end

-- Set a key that is due at a moment, and add it to an index; return when it expires.
local function set(key, value, index, id, due_at)
    local expires = math.floor(math.max(tonumber(due_at), now) / 1000) + grace
    redis.call('SET', key, cjson.encode(value))
    redis.call('PEXPIREAT', key, expires)
    redis.call('ZADD', index, due_at, id)
    expirations[index] = math.max(expirations[index] or 0, expires)
    return expires
end

local function bury(tombstone, due_at)
    set(base .. 't:' .. tombstone.id, tombstone, base .. 'stale', tombstone.id, due_at)
end

local function write(session, is_new, had_ended)
    local id, ended = session.id, session.revoked_at ~= nil
    local expires = set(base .. 's:' .. id, session, base .. 'due', id, session.due_at)
    local to, from = base .. 'u:' .. session.user_id, base .. 'e:' .. session.user_id
    if ended then
        to, from = from, to
    end
    if is_new or ended ~= had_ended then
        move(id, to, from)
    end
    expirations[to] = math.max(expirations[to] or 0, expires)
end

-- An index lives as long as what is in it.
local function extend_indexes()
    for key, expires in pairs(expirations) do
        if redis.call('PTTL', key) < expires - now / 1000 then
            redis.call('PEXPIREAT', key, expires)
        end
    end
end
"""
)

#: Add a session. Argument: the session.
ADD = (
    _WRITE
    + """
write(cjson.decode(ARGV[3]), true)
extend_indexes()
"""
)

#: Change, or end, the sessions that have all the expected values; one that ends gets a
#: 'revoked_at'. Arguments: the new values, the expected ones, a random token, a tombstone to add if
#: a session has changed, or nothing; keys: of the sessions.
UPDATE = (
    _WRITE
    + """
local values, where = cjson.decode(ARGV[3]), cjson.decode(ARGV[4])
local changed = {}
for _, key in ipairs(KEYS) do
    local session = read(redis.call('GET', key))
    -- The client repeats a call whose reply was lost: this was done before.
    local is_done = session and session.token == ARGV[5]
    for name, value in pairs(session and not is_done and where or {}) do
        if (session[name] or cjson.null) ~= value then
            session = nil
            break
        end
    end
    if session then
        local had_ended = session.revoked_at ~= nil
        for name, value in pairs(is_done and {} or values) do
            session[name] = value ~= cjson.null and value or nil
        end
        session.token = ARGV[5]
        write(session, false, had_ended)
        if ARGV[6] ~= '' then
            local tombstone = cjson.decode(ARGV[6])
            bury(tombstone, tombstone.left_at)
        end
        changed[#changed + 1] = {
            session.id,
            session.user_id,
            session.store_id or false,
        }
    end
end
extend_indexes()
return changed
"""
)

#: Return a session. If its user's index doesn't name it, it counts as lost: a revocation of the
#: user's sessions would miss it. Key: of the session.
GET = (
    _READ
    + """
local text = redis.call('GET', KEYS[1])
local session = read(text)
if session and not session.revoked_at then
    if not redis.call('ZSCORE', base .. 'u:' .. session.user_id, session.id) then
        return nil
    end
end
return text
"""
)

#: Delete sessions that have ended; return how many. Keys: of the sessions.
REMOVE = (
    _READ
    + """
local removed = 0
for _, key in ipairs(KEYS) do
    local session = read(redis.call('GET', key))
    if session and session.revoked_at then
        redis.call('DEL', key)
        redis.call('ZREM', base .. 'due', session.id)
        redis.call('ZREM', base .. 'e:' .. session.user_id, session.id)
        removed = removed + 1
    end
end
return removed
"""
)

#: Look at tombstones again at another moment. Argument: the moment; keys: of the tombstones.
POSTPONE_TOMBSTONES = (
    _WRITE
    + """
for _, key in ipairs(KEYS) do
    local text = redis.call('GET', key)
    if text then
        bury(cjson.decode(text), ARGV[3])
    end
end
extend_indexes()
"""
)

#: Delete the tombstones of keys that were left by a moment. Argument: the moment; keys: of the
#: tombstones.
REMOVE_TOMBSTONES = """
local base = ARGV[1]
for _, key in ipairs(KEYS) do
    local text = redis.call('GET', key)
    local tombstone = text and cjson.decode(text)
    if tombstone and tonumber(tombstone.left_at) <= tonumber(ARGV[3]) then
        redis.call('DEL', key)
        redis.call('ZREM', base .. 'stale', tombstone.id)
    end
end
"""
