/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Every struct and number that the kernel programs share with Python.
 *
 * interceptor/abi.py mirrors this file and tests/unit/test_abi.py compares the two: sizes,
 * offsets and enum values. A change of layout or meaning needs a new MOA_ABI_VERSION, which
 * names the directory of the pins, so that two layouts never meet in one map.
 *
 * Byte order: a name ending in _be is in network order, everything else in the host's.
 */
#ifndef MOA_ABI_H
#define MOA_ABI_H

#include <linux/types.h>

#define MOA_ABI_VERSION 2

/* moa_cfg.flags */
enum moa_cfg_flag {
	MOA_CFG_ENABLED = 1, /* off: every hook leaves the connection alone */
	MOA_CFG_SHADOW = 2, /* decide, count and report, change nothing */
	MOA_CFG_EVENTS = 4, /* write decisions to the ring buffer */
	MOA_CFG_SPREAD = 8, /* use all of 127.64.0.0/16, not 127.0.0.1 alone */
	MOA_CFG_CGROUP_POLICY = 16, /* cgroup_policy has entries */
};

/* cgroup_policy values */
enum moa_cgroup_flag {
	MOA_CGROUP_EXCLUDED = 1,
	MOA_CGROUP_SHADOW = 2,
};

/* dst_* values */
enum moa_dst_flag {
	MOA_DST_LISTED = 1,
	MOA_DST_LOOPBACK = 2, /* the entry itself lies within loopback */
	MOA_DST_INSTANCE = 4, /* the registry lists it, or lately did, as an instance */
};

/* Keys of the listeners map */
enum moa_listener {
	MOA_LISTENER_OUT4 = 0,
	MOA_LISTENER_OUT6 = 1,
	MOA_LISTENER_IN4 = 2,
	MOA_LISTENER_IN6 = 3,
	MOA_LISTENER_MAX = 4,
};

/* Why a hook did what it did: the key of the counters map and the reason of an event. */
enum moa_reason {
	MOA_R_CONNECT_DISABLED = 0,
	MOA_R_CONNECT_NOT_TCP,
	MOA_R_CONNECT_NO_SOCKET,
	MOA_R_CONNECT_AGENT_CGROUP,
	MOA_R_CONNECT_AGENT_MARK,
	MOA_R_CONNECT_DEVICE_BOUND,
	MOA_R_CONNECT_SELF,
	MOA_R_CONNECT_LOOPBACK,
	MOA_R_CONNECT_CGROUP_EXCLUDED,
	MOA_R_CONNECT_DST_EXCLUDED,
	MOA_R_CONNECT_DST_NOT_INCLUDED,
	MOA_R_CONNECT_HEARTBEAT_STALE,
	MOA_R_CONNECT_NO_LISTENER,
	MOA_R_CONNECT_FOREIGN_LISTENER,
	MOA_R_CONNECT_NO_STORAGE,
	MOA_R_CONNECT_SHADOW,
	MOA_R_CONNECT_REDIRECTED,
	MOA_R_CONNECT_PEER,
	MOA_R_CONNECT_PEER_NOT_INSTANCE,
	MOA_R_CONNECT_PEER_OTHER_NETNS,
	MOA_R_CONNECT_PEER_NONE_FRESH,
	MOA_R_CARRY_STORED,
	MOA_R_CARRY_STORE_FAILED,
	MOA_R_CARRY_TAKEN,
	MOA_R_CARRY_MISSING,
	MOA_R_CARRY_STALE,
	MOA_R_CARRY_NO_STORAGE,
	MOA_R_ORIGDST_ANSWERED,
	MOA_R_ORIGDST_UNKNOWN,
	MOA_R_ORIGDST_SHORT_BUFFER,
	MOA_R_PEERNAME_ANSWERED,
	MOA_R_INBOUND_DISABLED,
	MOA_R_INBOUND_NOT_OURS,
	MOA_R_INBOUND_LOOP_GUARD,
	MOA_R_INBOUND_HEARTBEAT_STALE,
	MOA_R_INBOUND_NO_LISTENER,
	MOA_R_INBOUND_ASSIGN_FAILED,
	MOA_R_INBOUND_SHADOW,
	MOA_R_INBOUND_STEERED,
	MOA_R_OUTBOUND_STEERED,
	MOA_R_OUTBOUND_NO_LISTENER,
	MOA_R_EVENT_LOST,
	MOA_R_MAX,
};

/* Room for reasons to come, so that a new one is no new layout. */
#define MOA_COUNTERS 64

/* Keys of the peers map: so many for IPv4, and as many for IPv6 after them. */
#define MOA_PEER_SLOTS 16

/* cfg[0]. Written by user space only. */
struct moa_cfg {
	__u32 flags;
	__u32 agent_mark; /* SO_MARK of the agent's own sockets; 0: none */
	__u64 agent_cgroup_id; /* 0: none yet */
	__u32 agent_cgroup_level; /* depth of that cgroup, root = 0 */
	__u32 outbound_port; /* host order */
	__u32 inbound_port; /* host order */
	__u32 generation; /* of the agent that serves; shown, never judged */
	__u64 heartbeat_max_age_ns;
	__u64 on_until_ns; /* CLOCK_MONOTONIC: off from then on, unless confirmed; 0: no limit */
};

/* An address that a service dialled. IPv4 stands in addr_be[0], the rest 0. */
struct moa_dst {
	__u32 addr_be[4];
	__u16 port_be;
	__u8 family; /* 4 or 6 */
	__u8 via_peer; /* sent to a peer agent: nobody on this node will ask for it */
	__u32 pid; /* of the process that called connect() */
	__u64 cookie; /* of the caller's socket */
	__u64 cgroup_id; /* of the caller */
	__u64 stored_ns; /* CLOCK_MONOTONIC, of the SYN */
};

/* A loopback connection between a caller and the agent, as the caller sees it. */
struct moa_tuple {
	__u32 src_be[4];
	__u32 dst_be[4];
	__u16 src_port; /* host order */
	__u16 dst_port; /* host order */
	__u32 family; /* 4 or 6 */
};

/*
 * LPM key of IPv4 destinations. The protocol and the port come first, so that a prefix always
 * covers both: prefixlen is 32 + the address's own. Port 0 in the trie means any port.
 */
struct moa_lpm4 {
	__u32 prefixlen;
	__u8 protocol;
	__u8 reserved;
	__u16 port_be;
	__u32 addr_be;
};

struct moa_lpm6 {
	__u32 prefixlen;
	__u8 protocol;
	__u8 reserved;
	__u16 port_be;
	__u32 addr_be[4];
};

/* A peer agent, good for as long as its supervisor says: one that dies lets it expire. */
struct moa_peer {
	__u32 addr_be[4]; /* IPv4 stands in addr_be[0], the rest 0 */
	__u16 port_be;
	__u8 family; /* 4 or 6 */
	__u8 reserved;
	__u32 reserved2;
	__u64 valid_until_ns; /* CLOCK_MONOTONIC; 0: no peer lives */
	__u64 netns_cookie; /* of the callers that it is for: the agent's own namespace */
};

/* One decision, before and after translation. */
struct moa_event {
	__u64 at_ns; /* CLOCK_MONOTONIC */
	__u64 cookie;
	__u64 cgroup_id;
	__u32 pid;
	__u16 reason; /* enum moa_reason */
	__u8 family; /* 4 or 6 */
	__u8 reserved;
	__u32 before_be[4];
	__u32 after_be[4]; /* zero when nothing was translated */
	__u16 before_port_be;
	__u16 after_port_be;
	char comm[16];
	__u32 reserved2;
};

_Static_assert(sizeof(struct moa_cfg) == 48, "moa_cfg");
_Static_assert(sizeof(struct moa_dst) == 48, "moa_dst");
_Static_assert(sizeof(struct moa_tuple) == 40, "moa_tuple");
_Static_assert(sizeof(struct moa_lpm4) == 12, "moa_lpm4");
_Static_assert(sizeof(struct moa_lpm6) == 24, "moa_lpm6");
_Static_assert(sizeof(struct moa_peer) == 40, "moa_peer");
_Static_assert(sizeof(struct moa_event) == 88, "moa_event");
_Static_assert((int)MOA_R_MAX <= MOA_COUNTERS, "counters");

#endif
