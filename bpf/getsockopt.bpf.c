/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * cgroup/getsockopt, on the agent's cgroup only: answers SO_ORIGINAL_DST and
 * IP6T_SO_ORIGINAL_DST, so that any proxy can stand where ours stands, without a privilege.
 *
 * Attached wider it would harm others: the hook bounds every option of every process to a
 * page (merbridge#323 broke iptables that way).
 */
#include "common.h"

#define MOA_SOL_IP 0
#define MOA_SOL_IPV6 41
#define MOA_SO_ORIGINAL_DST 80 /* the same number at both levels */

struct moa_sockaddr4 {
	__u16 family;
	__u16 port_be;
	__u32 addr_be;
	__u8 zero[8];
};

struct moa_sockaddr6 {
	__u16 family;
	__u16 port_be;
	__u32 flowinfo;
	__u32 addr_be[4];
	__u32 scope_id;
};

/* clang merges plain stores to optlen and retval into one, which the verifier refuses. */
static __always_inline int moa_answered(struct bpf_sockopt *ctx, __s32 length)
{
	*(volatile __s32 *)&ctx->optlen = length;
	*(volatile __s32 *)&ctx->retval = 0;
	moa_count(MOA_R_ORIGDST_ANSWERED);
	return MOA_ALLOW;
}

static __always_inline int moa_short_buffer(void)
{
	moa_count(MOA_R_ORIGDST_SHORT_BUFFER);
	return MOA_ALLOW;
}

SEC("cgroup/getsockopt")
int moa_getsockopt(struct bpf_sockopt *ctx)
{
	struct moa_sockaddr4 *out4 = ctx->optval;
	struct moa_sockaddr6 *out6 = ctx->optval;
	struct moa_dst *dst;

	if (ctx->optname != MOA_SO_ORIGINAL_DST ||
	    (ctx->level != MOA_SOL_IP && ctx->level != MOA_SOL_IPV6) || !ctx->sk)
		return MOA_ALLOW;
	dst = bpf_sk_storage_get(&dst_by_accepted, ctx->sk, NULL, 0);
	if (!dst || (dst->family == 4) != (ctx->level == MOA_SOL_IP)) {
		moa_count(MOA_R_ORIGDST_UNKNOWN);
		return MOA_ALLOW;
	}
	if (dst->family == 4) {
		if ((void *)(out4 + 1) > ctx->optval_end)
			return moa_short_buffer();
		out4->family = MOA_AF_INET;
		out4->port_be = dst->port_be;
		out4->addr_be = dst->addr_be[0];
		__builtin_memset(out4->zero, 0, sizeof(out4->zero));
		return moa_answered(ctx, sizeof(*out4));
	}
	if ((void *)(out6 + 1) > ctx->optval_end)
		return moa_short_buffer();
	out6->family = MOA_AF_INET6;
	out6->port_be = dst->port_be;
	out6->flowinfo = 0;
	__builtin_memcpy(out6->addr_be, dst->addr_be, sizeof(out6->addr_be));
	out6->scope_id = 0;
	return moa_answered(ctx, sizeof(*out6));
}
