"""The Lua script that changes the registry: one change of a service is one atomic step.

The version is `<incarnation>-<counter>`. The incarnation is the time in microseconds at which
the version key came into being, so a reader can tell "changed" from "lost and begun again"
(docs/PROTOCOL.md, "Registry on Redis"). Redis 5 or newer: older ones refuse to write after TIME.
"""

from __future__ import annotations

CHANGE = """
local set, version_key, heartbeats = KEYS[1], KEYS[2], KEYS[3]
local name, address, member = ARGV[1], ARGV[2], ARGV[3]
local version, now = redis.call('GET', version_key), redis.call('TIME')
local changed = false
for _, old in ipairs(redis.call('SMEMBERS', set)) do
  if old ~= member and string.match(old, '^[^?]*') == address then
    redis.call('SREM', set, old)
    redis.call('ZREM', heartbeats, old)
    changed = true
  end
end
if member ~= '' then
  if redis.call('SADD', set, member) == 1 then changed = true end
  local now_ms = string.format('%d', now[1] * 1000 + math.floor(now[2] / 1000))
  redis.call('ZADD', heartbeats, now_ms, member)
end
if not changed and (version or member == '') then return {version or '', 0} end
local incarnation, counter = string.match(version or '', '^(%d+)%-(%d+)$')
if not incarnation then incarnation, counter = now[1] .. string.format('%06d', now[2]), 0 end
version = incarnation .. '-' .. string.format('%d', counter + 1)
redis.call('SET', version_key, version)
redis.call('PUBLISH', 'moa:changed', name .. ' ' .. version)
return {version, 1}
"""
"""Enter a member in place of any other of its address, or with an empty member take it out.

KEYS: the service's set, its version, its heartbeats (`keys.script_keys`), all on one slot.
ARGV: the service's name, the `host:port` of the member, the member or ''.
Entering a member that is there already is its heartbeat: no new version, no message.
Returns {version, 1 when there is a new version, else 0}.
"""
