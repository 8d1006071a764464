"""The Lua scripts that change the registry: one change of a service is one atomic step.

The version is `<incarnation>-<counter>`. The incarnation is the time in microseconds at which
the version key came into being, so a reader can tell "changed" from "lost and begun again"
(docs/PROTOCOL.md, "Registry on Redis"). Redis 5 or newer: older ones refuse to write after TIME.

KEYS of each: the service's set, its version, heartbeats, marks, and what is offline
(`keys.script_keys`), all on one slot. ARGV begins with the service's name and a `host:port`.
"""

from __future__ import annotations

PRELUDE = """
local set, version_key, heartbeats, marks, offline = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local name, address = ARGV[1], ARGV[2]
local version, now = redis.call('GET', version_key), redis.call('TIME')
local now_ms = string.format('%d', now[1] * 1000 + math.floor(now[2] / 1000))
local function publish()
  local incarnation, counter = string.match(version or '', '^(%d+)%-(%d+)$')
  if not incarnation then incarnation, counter = now[1] .. string.format('%06d', now[2]), 0 end
  version = incarnation .. '-' .. string.format('%d', counter + 1)
  redis.call('SET', version_key, version)
  redis.call('PUBLISH', 'moa:changed', name .. ' ' .. version)
end
local function members()
  local found = {}
  for _, member in ipairs(redis.call('SMEMBERS', set)) do
    if string.match(member, '^[^?]*') == address then found[#found + 1] = member end
  end
  return found
end
"""
"""What every script of a service begins with."""

CHANGE = (
    PRELUDE
    + """
local member, changed = ARGV[3], false
for _, old in ipairs(members()) do
  if old ~= member then
    redis.call('SREM', set, old)
    redis.call('ZREM', heartbeats, old)
    changed = true
  end
end
redis.call('HDEL', offline, address)
if member ~= '' then
  if redis.call('SADD', set, member) == 1 then changed = true end
  redis.call('ZADD', heartbeats, now_ms, member)
else
  for _, field in ipairs(redis.call('HKEYS', marks)) do
    if string.match(field, '^[^ ]*') == address then redis.call('HDEL', marks, field) end
  end
end
if not changed and (version or member == '') then return {version or '', 0} end
publish()
return {version, 1}
"""
)
"""Enter a member in place of any other of its address, or with an empty member take it out.

ARGV[3]: the member or ''. Entering a member that is there already is its heartbeat: no new
version, no message. What a watcher took out counts as entered, or as gone, from here on. Marks
stay with the address until it is taken out.
Returns {version, 1 when there is a new version, else 0}.
"""

MARK = (
    PRELUDE
    + """
local field, who, why = address .. ' ' .. ARGV[3], ARGV[4], ARGV[5]
local present = #members() > 0
local changed
if who == '' then
  changed = redis.call('HDEL', marks, field)
else
  if not present and redis.call('HEXISTS', offline, address) == 0 then return {'', -1} end
  changed = redis.call('HSET', marks, field, now_ms .. ' ' .. who .. ' ' .. why)
end
if changed == 1 and present then publish() end
return {version or '', changed}
"""
)
"""Set a mark of an instance, or with an empty author clear it.

ARGV[3..5]: the mark, who sets it ('' clears), why. Setting what is set already only replaces
who and why: no new version. An instance that is not in the set has no version to change either,
because a new version beside an empty set means that the set is empty on purpose.
Returns {version, 1 when the marks have changed, 0 when not, -1 when there is no such instance}.
"""
