"""The Lua scripts of watchers: a lease, and changes that check the votes in the same step.

Votes are in a sorted set on the service's slot: `<down|up> <host:port> <watcher>`, and
`out <host:port>` while that may not be taken out again, by the time at
which they end; all times are Redis's own, so that the clocks of watchers do not matter.
"""

from __future__ import annotations

from proxy.registry.scripts import PRELUDE

LEASE = """
local now = redis.call('TIME')
local now_ms = now[1] * 1000 + math.floor(now[2] / 1000)
local held, all = 0, redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if tonumber(string.match(all[i + 1], '^%d+') or '0') <= now_ms then
    redis.call('HDEL', KEYS[1], all[i])
  elseif all[i] == ARGV[1] then
    held = 1
  end
end
local ends_ms = string.format('%d', now_ms + ARGV[2])
redis.call('HSET', KEYS[1], ARGV[1], ends_ms .. ' ' .. ARGV[3])
return {held, string.format('%d', now_ms), redis.call('HGETALL', KEYS[1])}
"""
"""Renew a watcher's lease and end those of others that are over.

KEYS: `keys.WATCHERS`. ARGV: the watcher, how long in ms, what it says of itself as JSON.
Returns {1 when the lease before had not ended, now in unix ms, the hash as it is now}.
"""

_VOTES = """
local votes = KEYS[6]
local who, lease_ms, needed, why = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local fresh_ms = tonumber(ARGV[7])
redis.call('ZREMRANGEBYSCORE', votes, '-inf', now_ms)
local function add(entry, for_ms)
  redis.call('ZADD', votes, string.format('%d', now_ms + for_ms), entry)
  redis.call('PEXPIRE', votes, math.max(lease_ms, fresh_ms))
end
local function vote(word)
  add(word .. ' ' .. address .. ' ' .. who, lease_ms)
  local count, prefix = 0, word .. ' ' .. address .. ' '
  for _, entry in ipairs(redis.call('ZRANGE', votes, 0, -1)) do
    if string.sub(entry, 1, #prefix) == prefix then count = count + 1 end
  end
  return count
end
local function settle()
  for _, entry in ipairs(redis.call('ZRANGE', votes, 0, -1)) do
    if string.match(entry, '^%a+ ([^ ]*)') == address then redis.call('ZREM', votes, entry) end
  end
end
local function in_maint(host) return redis.call('HEXISTS', marks, host .. ' maint') == 1 end
"""

TAKE_OUT = (
    PRELUDE
    + _VOTES
    + """
local found = members()
if #found == 0 then return {'absent', 0, ''} end
if in_maint(address) then return {'maint', 0, ''} end
if redis.call('ZSCORE', votes, 'out ' .. address) then return {'fresh', 0, ''} end
local count = vote('down')
if count < needed then return {'waiting', count, ''} end
if ARGV[8] == '' then
  local others = 0
  for _, member in ipairs(redis.call('SMEMBERS', set)) do
    local host = string.match(member, '^[^?]*')
    if host ~= address and not in_maint(host) then others = others + 1 end
  end
  if others == 0 then return {'last', count, ''} end
end
local beat = redis.call('ZSCORE', heartbeats, found[1]) or now_ms
for _, member in ipairs(found) do
  redis.call('SREM', set, member)
  redis.call('ZREM', heartbeats, member)
end
redis.call('HSET', offline, address, cjson.encode({
  member = found[1], heartbeat_ms = beat, at_ms = now_ms, who = who, why = why}))
settle()
add('out ' .. address, fresh_ms)
publish()
return {'done', count, found[1]}
"""
)
"""Vote that an instance is down, and take it out when that makes enough votes.

KEYS: `keys.watch_keys`. ARGV after the address: the watcher, how long the vote counts in ms, the
votes needed, why, how long in ms an instance is not taken out again, and not '' when the service
may become empty. The fifth is because an instance that enters itself at once would fall to the
votes of watchers that have not seen yet that it was out.
Returns {what came of it, votes, the member that was taken out}; the first is one of `Outcome`.
"""

PUT_BACK = (
    PRELUDE
    + _VOTES
    + """
local entry = redis.call('HGET', offline, address)
if not entry then return {'absent', 0, ''} end
if #members() > 0 then
  redis.call('HDEL', offline, address)
  return {'absent', 0, ''}
end
if in_maint(address) then return {'maint', 0, ''} end
local count = vote('up')
if count < needed then return {'waiting', count, ''} end
local known = cjson.decode(entry)
redis.call('HDEL', offline, address)
redis.call('SADD', set, known.member)
redis.call('ZADD', heartbeats, known.heartbeat_ms, known.member)
settle()
publish()
return {'done', count, known.member}
"""
)
"""Vote that an instance is up, and enter it as it was when that makes enough votes.

KEYS, ARGV and the return as `TAKE_OUT`; an instance that has registered itself meanwhile stays as
it is.
"""

FORGET = (
    PRELUDE
    + """
if redis.call('HGET', offline, address) ~= ARGV[3] then return 0 end
redis.call('HDEL', offline, address)
if #members() == 0 then
  for _, field in ipairs(redis.call('HKEYS', marks)) do
    if string.match(field, '^[^ ]*') == address then redis.call('HDEL', marks, field) end
  end
end
return 1
"""
)
"""Forget an instance that is offline, and its marks, if its entry still is ARGV[3]; 1 when so."""
