/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The decision that connect4 and connect6 share.
 *
 * Rule: any doubt leaves the connection alone. Every way out counts itself.
 */
#ifndef MOA_CONNECT_H
#define MOA_CONNECT_H

#include "peer.h"

/* Deeper trees than this are not searched for an excluded ancestor; systemd's own nest to 6. */
#define MOA_CGROUP_LEVELS 10

static __always_inline void moa_report(struct bpf_sock_addr *ctx, const struct moa_cfg *config,
				       const struct moa_flow *flow, __u16 reason)
{
	struct moa_event *event;

	moa_count(reason);
	if (!(config->flags & MOA_CFG_EVENTS))
		return;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		moa_count(MOA_R_EVENT_LOST);
		return;
	}
	event->at_ns = bpf_ktime_get_ns();
	event->cookie = bpf_get_socket_cookie(ctx);
	event->cgroup_id = bpf_get_current_cgroup_id();
	event->pid = bpf_get_current_pid_tgid() >> 32;
	event->reason = reason;
	event->family = flow->family;
	event->reserved = 0;
	__builtin_memcpy(event->before_be, flow->before_be, sizeof(event->before_be));
	__builtin_memcpy(event->after_be, flow->after_be, sizeof(event->after_be));
	event->before_port_be = flow->before_port_be;
	event->after_port_be = flow->after_port_be;
	event->reserved2 = 0;
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	bpf_ringbuf_submit(event, 0);
}

/* The policy of the nearest ancestor that has one; 0 for none. */
static __always_inline __u32 moa_cgroup_policy(void)
{
	__u32 policy = 0;

	for (int level = 0; level <= MOA_CGROUP_LEVELS; level++) {
		__u64 id = bpf_get_current_ancestor_cgroup_id(level);
		__u32 *found;

		if (!id)
			break;
		found = bpf_map_lookup_elem(&cgroup_policy, &id);
		if (found)
			policy = *found;
	}
	return policy;
}

/* The flags of the longest prefix that holds the destination, with this port or with any. */
static __always_inline __u32 moa_listed(const struct moa_flow *flow, void *trie4, void *trie6)
{
	__u32 flags = 0;
	__u32 *found;

	if (flow->family == 4) {
		struct moa_lpm4 key = {
			.prefixlen = 64,
			.protocol = IPPROTO_TCP,
			.port_be = flow->before_port_be,
			.addr_be = flow->before_be[0],
		};

		found = bpf_map_lookup_elem(trie4, &key);
		if (found)
			flags |= *found;
		key.port_be = 0;
		found = bpf_map_lookup_elem(trie4, &key);
		if (found)
			flags |= *found;
	} else {
		struct moa_lpm6 key = {
			.prefixlen = 160,
			.protocol = IPPROTO_TCP,
			.port_be = flow->before_port_be,
		};

		__builtin_memcpy(key.addr_be, flow->before_be, sizeof(key.addr_be));
		found = bpf_map_lookup_elem(trie6, &key);
		if (found)
			flags |= *found;
		key.port_be = 0;
		found = bpf_map_lookup_elem(trie6, &key);
		if (found)
			flags |= *found;
	}
	return flags;
}

/* To dial the unspecified address means loopback, as BSD has it and the kernel after us. */
static __always_inline int moa_is_loopback(const struct moa_flow *flow)
{
	if (flow->family == 4)
		return moa_is_loopback4(flow->before_be[0]) || !flow->before_be[0];
	return !flow->before_be[0] && !flow->before_be[1] && !flow->before_be[2] &&
	       (flow->before_be[3] == bpf_htonl(1) || !flow->before_be[3]);
}

/* Such an address is good for one device only, and the agent would not learn for which. */
static __always_inline int moa_is_link_local(const struct moa_flow *flow)
{
	return flow->family == 6 &&
	       (flow->before_be[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* Looked up each time and never cached: it is what sees a crashed agent at once. The look-up
 * goes the way of the connection itself, the sk_lookup hook included. */
static __always_inline int moa_find_listener(struct bpf_sock_addr *ctx, const struct moa_flow *flow)
{
	struct bpf_sock_tuple tuple = {};
	int reason = MOA_R_CONNECT_NO_LISTENER;
	struct bpf_sock *sk;

	if (flow->family == 4) {
		tuple.ipv4.daddr = flow->after_be[0];
		tuple.ipv4.dport = flow->after_port_be;
		sk = bpf_sk_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	} else {
		__builtin_memcpy(tuple.ipv6.daddr, flow->after_be, sizeof(tuple.ipv6.daddr));
		tuple.ipv6.dport = flow->after_port_be;
		sk = bpf_sk_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	}
	if (!sk)
		return reason;
	if (sk->state == BPF_TCP_LISTEN) {
		reason = MOA_R_CONNECT_FOREIGN_LISTENER;
		if (bpf_sk_storage_get(&listener_mark, sk, NULL, 0))
			reason = MOA_R_CONNECT_REDIRECTED;
	}
	bpf_sk_release(sk);
	return reason;
}

/* Out of 65 536 loopback addresses, one for each connection: all intercepted connections
 * share one port, and one address would give only as many as there are source ports. */
static __always_inline void moa_translate(struct bpf_sock_addr *ctx, const struct moa_cfg *config,
					  struct moa_flow *flow)
{
	flow->after_port_be = bpf_htons((__u16)config->outbound_port);
	if (flow->family == 6) {
		flow->after_be[3] = bpf_htonl(1);
		return;
	}
	if (config->flags & MOA_CFG_SPREAD) {
		/* Cookies count up; multiplying spreads neighbours (Knuth). */
		__u32 hash = (__u32)bpf_get_socket_cookie(ctx) * 2654435761u;

		flow->after_be[0] = MOA_SPREAD_BE | bpf_htonl(hash >> 16);
	} else {
		flow->after_be[0] = MOA_LOOPBACK_BE;
	}
}

static __always_inline int moa_remember(struct bpf_sock_addr *ctx, struct bpf_sock *sk,
					const struct moa_flow *flow, __u8 via_peer)
{
	struct moa_dst *dst =
		bpf_sk_storage_get(&dst_by_caller, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);

	if (!dst)
		return 0;
	__builtin_memcpy(dst->addr_be, flow->before_be, sizeof(dst->addr_be));
	dst->port_be = flow->before_port_be;
	dst->family = flow->family;
	dst->via_peer = via_peer;
	dst->pid = bpf_get_current_pid_tgid() >> 32;
	dst->cookie = bpf_get_socket_cookie(ctx);
	dst->cgroup_id = bpf_get_current_cgroup_id();
	dst->stored_ns = bpf_ktime_get_ns();
	return 1;
}

/* Returns whether the caller is to rewrite the address to flow->after_*. */
static __always_inline int moa_decide(struct bpf_sock_addr *ctx, struct moa_flow *flow)
{
	const struct moa_cfg *config = moa_cfg_get();
	struct bpf_sock *sk = ctx->sk;
	__u32 policy = 0;
	__u32 included;
	int found = MOA_R_CONNECT_HEARTBEAT_STALE;

	if (ctx->protocol != IPPROTO_TCP) {
		moa_count(MOA_R_CONNECT_NOT_TCP);
		return 0;
	}
	if (!config || !sk) {
		moa_count(MOA_R_CONNECT_NO_SOCKET);
		return 0;
	}
	/* connect() may be called again after a failure: what was remembered is void now. */
	bpf_sk_storage_delete(&dst_by_caller, sk);

	if (!moa_is_on(config)) {
		moa_count(MOA_R_CONNECT_DISABLED);
		return 0;
	}
	if (config->agent_cgroup_id &&
	    bpf_get_current_ancestor_cgroup_id(config->agent_cgroup_level) ==
		    config->agent_cgroup_id) {
		moa_count(MOA_R_CONNECT_AGENT_CGROUP);
		return 0;
	}
	if (config->agent_mark && sk->mark == config->agent_mark) {
		moa_count(MOA_R_CONNECT_AGENT_MARK);
		return 0;
	}
	if (sk->bound_dev_if || moa_is_link_local(flow)) {
		moa_count(MOA_R_CONNECT_DEVICE_BOUND);
		return 0;
	}
	if (moa_is_loopback(flow) &&
	    (flow->before_port_be == bpf_htons((__u16)config->outbound_port) ||
	     flow->before_port_be == bpf_htons((__u16)config->inbound_port))) {
		moa_count(MOA_R_CONNECT_SELF);
		return 0;
	}
	if (config->flags & MOA_CFG_CGROUP_POLICY)
		policy = moa_cgroup_policy();
	if (policy & MOA_CGROUP_EXCLUDED) {
		moa_count(MOA_R_CONNECT_CGROUP_EXCLUDED);
		return 0;
	}
	included = moa_listed(flow, &dst_include4, &dst_include6);
	/* What a node says to itself is its own business unless it was asked for by name. */
	if (moa_is_loopback(flow) && !(included & MOA_DST_LOOPBACK)) {
		moa_count(MOA_R_CONNECT_LOOPBACK);
		return 0;
	}
	if (!included) {
		moa_count(MOA_R_CONNECT_DST_NOT_INCLUDED);
		return 0;
	}
	/* An exclusion always wins, however much longer the including prefix is. */
	if (moa_listed(flow, &dst_exclude4, &dst_exclude6)) {
		moa_count(MOA_R_CONNECT_DST_EXCLUDED);
		return 0;
	}
	if (moa_heartbeat_fresh(config)) {
		moa_translate(ctx, config, flow);
		found = moa_find_listener(ctx, flow);
	}
	if ((config->flags & MOA_CFG_SHADOW) || (policy & MOA_CGROUP_SHADOW)) {
		if (found == MOA_R_CONNECT_REDIRECTED)
			found = MOA_R_CONNECT_SHADOW;
		moa_report(ctx, config, flow, found);
		return 0;
	}
	if (found != MOA_R_CONNECT_REDIRECTED) {
		int peer = moa_choose_peer(ctx, flow, included);

		if (peer != MOA_R_MAX) {
			moa_count(found);
			found = peer;
		}
		if (found != MOA_R_CONNECT_PEER) {
			moa_report(ctx, config, flow, found);
			return 0;
		}
	}
	if (!moa_remember(ctx, sk, flow, found == MOA_R_CONNECT_PEER)) {
		moa_report(ctx, config, flow, MOA_R_CONNECT_NO_STORAGE);
		return 0;
	}
	moa_report(ctx, config, flow, found);
	return 1;
}

#endif
