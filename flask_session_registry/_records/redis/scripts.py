"""The Lua scripts that read and write user sessions in Redis.

Each is atomic, and touches the keys of one shard only. Its one key is the base of the shard's keys.
The first argument is the ids of sessions or tombstones, one after the other; in scripts that write,
the second is the grace period in milliseconds.

Their cost is that of the commands they call for each session, so they fetch only the needed fields,
and change each index once.
"""

from __future__ import annotations

import hashlib
import typing as t


class Script(t.NamedTuple):
    text: str
    #: By which Redis knows it once it has run.
    digest: str

    @classmethod
    def of(cls, *parts: str) -> Script:
        text = "".join(parts)
        return cls(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())

    def __repr__(self) -> str:
        return "Script()"


_READ = """
local base = KEYS[1]
local ids = {}
for id in string.gmatch(ARGV[1], string.rep('.', 32)) do
    ids[#ids + 1] = id
end

-- Return fields of a session, the first two of which must be these, and its key. An unreadable
-- session counts as lost.
local function read(id, names)
    local key = base .. 's:' .. id
    local found = redis.pcall('HMGET', key, unpack(names))
    return not found.err and found[1] and tonumber(found[2] or nil) and found or nil, key
end
local function with_required(...)
    return {'user_id', 'due_at', ...}
end
"""

#: Writing sessions and tombstones, with every index that leads to them.
_WRITE = (
    _READ
    + """
local grace = tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local additions, removals, latest, last = {}, {}, {}, {}

local function add(index, score, id)
    local members = additions[index] or {}
    additions[index] = members
    members[#members + 1] = score
    members[#members + 1] = id
end

-- Note that an index must not expire before something in it.
local function keep(index, moment)
    if moment > (latest[index] or 0) then
        latest[index] = moment
    end
end

-- Append a session to one index and remove it from another.
local function move(id, to, from)
    local members = removals[from] or {}
    removals[from] = members
    members[#members + 1] = id
    local found = last[to] or redis.call('ZREVRANGE', to, 0, 0, 'WITHSCORES')[2] or 0
    last[to] = math.max(now, tonumber(found) + 1)
    add(to, last[to], id)
end

local indexes, due = {}, base .. 'due'

local function expiry_of(moment)
    return math.floor(moment / 1000) + grace
end

-- Let the expiry and the indexes of a session follow what has been written to it.
local function follow(key, id, user_id, due_at, due_before, had_ended, ended)
    local moment, before = math.max(tonumber(due_at), now), tonumber(due_before)
    -- A session that ends lives long enough by what was written while it was active. One that has
    -- ended is given a later moment once, when it is marked as purged: half of the grace period is
    -- enough after that.
    local spared = had_ended and ended and grace * 1000 / 2 or 0
    if moment > before + spared then
        redis.call('PEXPIREAT', key, expiry_of(moment))
    end
    add(due, due_at, id)
    local of_user = indexes[user_id]
    if not of_user then
        of_user = {[false] = base .. 'u:' .. user_id, [true] = base .. 'e:' .. user_id}
        indexes[user_id] = of_user
    end
    local last_moment = math.max(moment, before)
    keep(due, last_moment)
    keep(of_user[ended], last_moment)
    if ended ~= had_ended then
        move(id, of_user[ended], of_user[not ended])
    end
end

local function bury(tombstone, due_at)
    local key = base .. 't:' .. tombstone.id
    local moment = math.max(tonumber(due_at), now)
    redis.call('SET', key, cjson.encode(tombstone))
    redis.call('PEXPIREAT', key, expiry_of(moment))
    add(base .. 'stale', due_at, tombstone.id)
    keep(base .. 'stale', moment)
end

-- Write the indexes. Each lives as long as what is in it.
local function finish()
    for key, members in pairs(removals) do
        redis.call('ZREM', key, unpack(members))
    end
    for key, members in pairs(additions) do
        redis.call('ZADD', key, unpack(members))
    end
    for key, moment in pairs(latest) do
        local expires = expiry_of(moment)
        if redis.call('PTTL', key) < expires - now / 1000 then
            redis.call('PEXPIREAT', key, expires)
        end
    end
end
"""
)

#: Add a session. Argument: its fields, a JSON object.
ADD = Script.of(
    _WRITE,
    """
local session, fields = cjson.decode(ARGV[3]), {}
for name, value in pairs(session) do
    fields[#fields + 1] = name
    fields[#fields + 1] = value
end
local key = base .. 's:' .. ids[1]
redis.call('DEL', key)
redis.call('HSET', key, unpack(fields))
local ended = session.revoked_at ~= nil
follow(key, ids[1], session.user_id, session.due_at, 0, not ended, ended)
finish()
""",
)

#: Change, or end, the sessions that meet the conditions; one that ends gets a 'revoked_at'.
#: Arguments: the new values, the allowed ones and the refused ones, a random token, a tombstone to
#: add if a session has changed, or nothing. Return, as JSON, for each changed session which one of
#: them it is, its user and its store key.
UPDATE = Script.of(
    _WRITE,
    """
local values, token = cjson.decode(ARGV[3]), ARGV[6]
local names, places = with_required('revoked_at', 'store_id', 'token'), {}
for place, name in ipairs(names) do
    places[name] = place
end
local conditions = {}
for place, is_allowed in ipairs({true, false}) do
    for name, expected in pairs(cjson.decode(ARGV[3 + place])) do
        local set = {}
        for _, value in ipairs(expected) do
            set[value ~= cjson.null and value] = true
        end
        if not places[name] then
            names[#names + 1] = name
            places[name] = #names
        end
        conditions[#conditions + 1] = {places[name], set, is_allowed}
    end
end

local set, cleared = {'token', token}, {}
for name, value in pairs(values) do
    if value == cjson.null then
        cleared[#cleared + 1] = name
    else
        set[#set + 1] = name
        set[#set + 1] = value
    end
end

local function is_meant(found)
    for _, condition in ipairs(conditions) do
        local is_in = condition[2][found[condition[1]]] or false
        if is_in ~= condition[3] then
            return false
        end
    end
    return true
end

-- What a session has after the change.
local function after(name, before)
    if values[name] == nil then
        return before
    end
    return values[name] ~= cjson.null and values[name]
end

local changed = {}
for place, id in ipairs(ids) do
    local found, key = read(id, names)
    -- The client repeats a call whose reply was lost: this was done before.
    local is_done = found and found[5] == token
    if found and (is_done or is_meant(found)) then
        local user_id, had_ended = found[1], found[3]
        local store_id, ended = after('store_id', found[4]), after('revoked_at', had_ended)
        if not is_done then
            redis.call('HSET', key, unpack(set))
            if cleared[1] then
                redis.call('HDEL', key, unpack(cleared))
            end
            local due_before = found[2]
            local due_at = after('due_at', due_before)
            follow(key, id, user_id, due_at, due_before, had_ended and true, ended and true)
            if ARGV[7] ~= '' then
                local tombstone = cjson.decode(ARGV[7])
                bury(tombstone, tombstone.left_at)
            end
        end
        changed[#changed + 1] = place
        changed[#changed + 1] = user_id
        changed[#changed + 1] = store_id
    end
end
finish()
return cjson.encode(changed)
""",
)

#: Whether the user's index names an active session. If not, the session counts as lost: a
#: revocation of the user's sessions would miss it.
_IS_NAMED = """
local function is_named(id, user_id)
    return redis.call('ZSCORE', base .. 'u:' .. user_id, id)
end
"""

#: Return, as JSON, which of these sessions exist, each followed by its fields. If there is one id,
#: an active session must be named by its user's index.
GET = Script.of(
    _READ,
    _IS_NAMED,
    """
local found, required = {}, with_required('revoked_at')
for place, id in ipairs(ids) do
    local session, key = read(id, required)
    if session and (ids[2] or session[3] or is_named(id, session[1])) then
        found[#found + 1] = place
        found[#found + 1] = redis.call('HGETALL', key)
    end
end
return cjson.encode(found)
""",
)

#: Return, as JSON, fields of an active session; nothing if there is none. Arguments: their names.
LOAD = Script.of(
    _READ,
    _IS_NAMED,
    """
local found = read(ids[1], with_required('revoked_at', unpack(ARGV, 2)))
if found and not found[3] and is_named(ids[1], found[1]) then
    return cjson.encode(found)
end
""",
)

#: Return the ids of the first sessions that an index names after a score, one after the other, and
#: the score of the last of them. Arguments: instead of ids, the index; the score; how many.
PAGE = Script.of("""
local index = KEYS[1] .. ARGV[1]
local ids = redis.call('ZRANGEBYSCORE', index, ARGV[2], '+inf', 'LIMIT', 0, ARGV[3])
if ids[1] then
    return {table.concat(ids), redis.call('ZSCORE', index, ids[#ids])}
end
""")

#: Delete sessions that have ended; return how many.
REMOVE = Script.of(
    _READ,
    """
local removed, required = 0, with_required('revoked_at')
for _, id in ipairs(ids) do
    local session, key = read(id, required)
    if session and session[3] then
        redis.call('DEL', key)
        redis.call('ZREM', base .. 'due', id)
        redis.call('ZREM', base .. 'e:' .. session[1], id)
        removed = removed + 1
    end
end
return removed
""",
)

#: Look at tombstones again at another moment. Argument: the moment.
POSTPONE_TOMBSTONES = Script.of(
    _WRITE,
    """
for _, id in ipairs(ids) do
    local text = redis.call('GET', base .. 't:' .. id)
    if text then
        bury(cjson.decode(text), ARGV[3])
    end
end
finish()
""",
)

#: Delete the tombstones of keys that were left by a moment. Argument: the moment.
REMOVE_TOMBSTONES = Script.of(
    _READ,
    """
for _, id in ipairs(ids) do
    local key = base .. 't:' .. id
    local text = redis.call('GET', key)
    local tombstone = text and cjson.decode(text)
    if tombstone and tonumber(tombstone.left_at) <= tonumber(ARGV[3]) then
        redis.call('DEL', key)
        redis.call('ZREM', base .. 'stale', tombstone.id)
    end
end
""",
)
