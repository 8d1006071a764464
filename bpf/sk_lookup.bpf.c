/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * sk_lookup, on a network namespace: gives connections for a local service's port to the
 * agent's inbound listener, and those for 127.64.0.0/16 to its outbound listener, which is
 * bound to 127.0.0.1 alone and so is never open to the network.
 *
 * SK_PASS without an assignment is "as if we were not here".
 */
#include "common.h"

static __always_inline int moa_assign(struct bpf_sk_lookup *ctx, __u32 slot, __u32 steered,
				      __u32 absent)
{
	struct bpf_sock *sk = bpf_map_lookup_elem(&listeners, &slot);
	long failed;

	if (!sk) {
		moa_count(absent);
		return SK_PASS;
	}
	failed = bpf_sk_assign(ctx, sk, 0);
	bpf_sk_release(sk);
	moa_count(failed ? MOA_R_INBOUND_ASSIGN_FAILED : steered);
	return SK_PASS;
}

/* The agent dials its own node's service from here; IPv6 has no spare loopback address, so
 * that ::1 as a whole goes straight to the service. */
static __always_inline int moa_from_agent(struct bpf_sk_lookup *ctx)
{
	if (ctx->family == MOA_AF_INET)
		return ctx->remote_ip4 == MOA_LOOP_GUARD_BE;
	return !ctx->remote_ip6[0] && !ctx->remote_ip6[1] && !ctx->remote_ip6[2] &&
	       ctx->remote_ip6[3] == bpf_htonl(1);
}

SEC("sk_lookup")
int moa_sk_lookup(struct bpf_sk_lookup *ctx)
{
	const struct moa_cfg *config = moa_cfg_get();
	__u32 port = ctx->local_port;

	if (!config || ctx->protocol != IPPROTO_TCP)
		return SK_PASS;
	/* No check of the heartbeat: connect4 has made it, and these addresses are ours alone. */
	if (ctx->family == MOA_AF_INET && port == config->outbound_port &&
	    (ctx->local_ip4 & MOA_SPREAD_MASK_BE) == MOA_SPREAD_BE)
		return moa_assign(ctx, MOA_LISTENER_OUT4, MOA_R_OUTBOUND_STEERED,
				  MOA_R_OUTBOUND_NO_LISTENER);
	if (!bpf_map_lookup_elem(&in_ports, &port)) {
		moa_count(MOA_R_INBOUND_NOT_OURS);
		return SK_PASS;
	}
	if (!moa_is_on(config)) {
		moa_count(MOA_R_INBOUND_DISABLED);
		return SK_PASS;
	}
	if (moa_from_agent(ctx)) {
		moa_count(MOA_R_INBOUND_LOOP_GUARD);
		return SK_PASS;
	}
	if (!moa_heartbeat_fresh(config)) {
		moa_count(MOA_R_INBOUND_HEARTBEAT_STALE);
		return SK_PASS;
	}
	if (config->flags & MOA_CFG_SHADOW) {
		moa_count(MOA_R_INBOUND_SHADOW);
		return SK_PASS;
	}
	return moa_assign(ctx, ctx->family == MOA_AF_INET ? MOA_LISTENER_IN4 : MOA_LISTENER_IN6,
			  MOA_R_INBOUND_STEERED, MOA_R_INBOUND_NO_LISTENER);
}
