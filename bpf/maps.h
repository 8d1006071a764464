/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Every map: its key, who writes it, and who deletes from it.
 *
 * A map is named by its key where it has an interesting one. "Agent" and "moactl" write
 * through interceptor/maps.py.
 */
#ifndef MOA_MAPS_H
#define MOA_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

/* [0] the switches. Written by moactl and the agent, under the node's lock. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct moa_cfg);
} cfg SEC(".maps");

/* [0] CLOCK_MONOTONIC ns of the agent's last turn of its event loop. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} heartbeat SEC(".maps");

/* cgroup id -> enum moa_cgroup_flag. Written and deleted by moactl. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u32);
} cgroup_policy SEC(".maps");

/* Destinations: written and deleted by the agent (registry) and moactl (configuration). */
#define MOA_DST_TRIE(name, key_type)                  \
	struct {                                      \
		__uint(type, BPF_MAP_TYPE_LPM_TRIE);  \
		__uint(max_entries, 65536);           \
		__uint(map_flags, BPF_F_NO_PREALLOC); \
		__type(key, key_type);                \
		__type(value, __u32);                 \
	} name SEC(".maps")

MOA_DST_TRIE(dst_include4, struct moa_lpm4);
MOA_DST_TRIE(dst_include6, struct moa_lpm6);
MOA_DST_TRIE(dst_exclude4, struct moa_lpm4);
MOA_DST_TRIE(dst_exclude6, struct moa_lpm6);

/*
 * Slot -> a peer agent for callers whose own agent does not serve. Written and deleted by the
 * supervisor, which fills every slot of a family with the peers that live: one look-up at a
 * random slot is a fair choice. A hash, since its elements are replaced as a whole.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * MOA_PEER_SLOTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct moa_peer);
} peers SEC(".maps");

/* Port (host order) of a local service whose traffic is the agent's. Written by the agent. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u32);
} in_ports SEC(".maps");

/* enum moa_listener -> listening socket. Written by the agent; the kernel empties the slot
 * when the socket is closed, which is what makes the inbound side fail open. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, MOA_LISTENER_MAX);
	__type(key, __u32);
	__type(value, __u64);
} listeners SEC(".maps");

/* A mark on the agent's own listening sockets (the generation), so that a stranger who
 * listens on our port is not mistaken for the agent. Written by the agent, freed with the
 * socket. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, __u32);
} listener_mark SEC(".maps");

/* Caller's socket -> the address that it dialled. Written by connect4/6, freed with the
 * socket or at its next connect(). */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct moa_dst);
} dst_by_caller SEC(".maps");

/* Carries a destination from the caller's socket to the agent's, for the microseconds of a
 * loopback handshake. Written by sockops A, deleted by sockops B. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct moa_tuple);
	__type(value, struct moa_dst);
} dst_by_tuple SEC(".maps");

/* Agent's accepted socket -> the address that its caller dialled. Written by sockops B, read
 * by getsockopt, freed with the socket, moves with its descriptor. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct moa_dst);
} dst_by_accepted SEC(".maps");

/* enum moa_reason -> how often, per CPU, since the maps were made. Written by every hook. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MOA_COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* Decisions, while MOA_CFG_EVENTS is set. Written by connect4/6, read by moactl. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} events SEC(".maps");

#endif
