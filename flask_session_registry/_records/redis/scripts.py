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
    return is_text and type(session) == 'table' and session.id and session.due_at and session or nil
end
"""

#: Writing a session, with every index that leads to it.
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

local function write(session, is_new, had_ended)
    local id, due, ended = session.id, base .. 'due', session.revoked_at ~= nil
    local expires = math.floor(math.max(tonumber(session.due_at), now) / 1000) + grace
    redis.call('SET', base .. 's:' .. id, cjson.encode(session))
    redis.call('PEXPIREAT', base .. 's:' .. id, expires)
    redis.call('ZADD', due, session.due_at, id)
    expirations[due] = math.max(expirations[due] or 0, expires)
    if session.user_id then
        local active_index = base .. 'u:' .. session.user_id
        local ended_index = base .. 'e:' .. session.user_id
        local to, from = active_index, ended_index
        if ended then
            to, from = ended_index, active_index
        end
        if is_new or ended ~= had_ended then
            move(id, to, from)
        end
        expirations[to] = math.max(expirations[to] or 0, expires)
    end
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

#: Change the sessions that have all the expected values. Arguments: the new values, the expected
#: ones, a random token; keys: of the sessions.
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
        changed[#changed + 1] = {
            session.id,
            session.user_id or false,
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
if session and session.user_id and not session.revoked_at then
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
        if session.user_id then
            redis.call('ZREM', base .. 'e:' .. session.user_id, session.id)
        end
        removed = removed + 1
    end
end
return removed
"""
)
