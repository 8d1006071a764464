/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * cgroup/connect6: an IPv6 connection of a service is turned to the agent.
 *
 * Needed for IPv4 as well: Java, and every dual-stack socket, dials ::ffff:a.b.c.d. Such a
 * connection is IPv4 on the wire and is decided and translated as IPv4.
 */
#include "connect.h"

SEC("cgroup/connect6")
int moa_connect6(struct bpf_sock_addr *ctx)
{
	__u32 first = ctx->user_ip6[0], second = ctx->user_ip6[1];
	__u32 third = ctx->user_ip6[2], fourth = ctx->user_ip6[3];
	struct moa_flow flow = { .before_port_be = (__u16)ctx->user_port };

	if (!first && !second && third == bpf_htonl(0xffff)) {
		flow.family = 4;
		flow.before_be[0] = fourth;
	} else {
		flow.family = 6;
		flow.before_be[0] = first;
		flow.before_be[1] = second;
		flow.before_be[2] = third;
		flow.before_be[3] = fourth;
	}
	if (!moa_decide(ctx, &flow))
		return MOA_ALLOW;
	if (flow.family == 4) {
		ctx->user_ip6[3] = flow.after_be[0];
	} else {
		ctx->user_ip6[0] = flow.after_be[0];
		ctx->user_ip6[1] = flow.after_be[1];
		ctx->user_ip6[2] = flow.after_be[2];
		ctx->user_ip6[3] = flow.after_be[3];
	}
	ctx->user_port = flow.after_port_be;
	return MOA_ALLOW;
}
