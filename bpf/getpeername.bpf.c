/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* cgroup/getpeername4 and 6, on the services' cgroups: a service sees the address it dialled. */
#include "common.h"

static __always_inline struct moa_dst *moa_dialled(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	return sk ? bpf_sk_storage_get(&dst_by_caller, sk, NULL, 0) : NULL;
}

SEC("cgroup/getpeername4")
int moa_getpeername4(struct bpf_sock_addr *ctx)
{
	struct moa_dst *dst = moa_dialled(ctx);

	if (dst && dst->family == 4) {
		ctx->user_ip4 = dst->addr_be[0];
		ctx->user_port = dst->port_be;
		moa_count(MOA_R_PEERNAME_ANSWERED);
	}
	return MOA_ALLOW;
}

SEC("cgroup/getpeername6")
int moa_getpeername6(struct bpf_sock_addr *ctx)
{
	struct moa_dst *dst = moa_dialled(ctx);

	if (!dst)
		return MOA_ALLOW;
	if (dst->family == 4) {
		/* The socket dialled ::ffff:a.b.c.d; its first 96 bits are right already. */
		ctx->user_ip6[3] = dst->addr_be[0];
	} else {
		ctx->user_ip6[0] = dst->addr_be[0];
		ctx->user_ip6[1] = dst->addr_be[1];
		ctx->user_ip6[2] = dst->addr_be[2];
		ctx->user_ip6[3] = dst->addr_be[3];
	}
	ctx->user_port = dst->port_be;
	moa_count(MOA_R_PEERNAME_ANSWERED);
	return MOA_ALLOW;
}
