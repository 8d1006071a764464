/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* cgroup/connect4: an IPv4 connection of a service is turned to the agent. */
#include "connect.h"

SEC("cgroup/connect4")
int moa_connect4(struct bpf_sock_addr *ctx)
{
	struct moa_flow flow = {
		.family = 4,
		.before_be = { ctx->user_ip4 },
		.before_port_be = (__u16)ctx->user_port,
	};

	if (moa_decide(ctx, &flow)) {
		ctx->user_ip4 = flow.after_be[0];
		ctx->user_port = flow.after_port_be;
	}
	return MOA_ALLOW;
}
