/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Another node's agent in place of ours, while ours does not serve. */
#ifndef MOA_PEER_H
#define MOA_PEER_H

#include "flow.h"

/* A stamp further ahead than this is of another clock (a time namespace) and says nothing. */
#define MOA_PEER_MAX_AHEAD_NS 60000000000ull

/*
 * Translates to a peer agent when one may take the connection. Returns MOA_R_CONNECT_PEER, or
 * why not; MOA_R_MAX when no peers are kept here at all.
 *
 * Nobody carries the dialled address to another node, so only what the registry lists as an
 * instance goes there: a MOA request names its service itself. Only for callers in the agent's
 * network namespace, as with the agent: a container has an address that no peer knows.
 */
static __always_inline int moa_choose_peer(struct bpf_sock_addr *ctx, struct moa_flow *flow,
					   __u32 included)
{
	__u32 slot = bpf_get_prandom_u32() % MOA_PEER_SLOTS;
	__u64 now = bpf_ktime_get_ns();
	struct moa_peer *peer;

	if (flow->family == 6)
		slot += MOA_PEER_SLOTS;
	peer = bpf_map_lookup_elem(&peers, &slot);
	if (!peer)
		return MOA_R_MAX;
	if (!(included & MOA_DST_INSTANCE))
		return MOA_R_CONNECT_PEER_NOT_INSTANCE;
	if (peer->netns_cookie != bpf_get_netns_cookie(ctx))
		return MOA_R_CONNECT_PEER_OTHER_NETNS;
	if (peer->family != flow->family || peer->valid_until_ns < now ||
	    peer->valid_until_ns - now > MOA_PEER_MAX_AHEAD_NS)
		return MOA_R_CONNECT_PEER_NONE_FRESH;
	__builtin_memcpy(flow->after_be, peer->addr_be, sizeof(flow->after_be));
	flow->after_port_be = peer->port_be;
	return MOA_R_CONNECT_PEER;
}

#endif
