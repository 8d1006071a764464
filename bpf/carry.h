/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* How sockops A and B name one loopback connection, seen from its two ends. */
#ifndef MOA_CARRY_H
#define MOA_CARRY_H

#include "common.h"

/* sock_ops gives local_port in host order and remote_port in network order (32 bit). */
static __always_inline __u16 moa_remote_port(struct bpf_sock_ops *ops)
{
	return (__u16)bpf_ntohl(ops->remote_port);
}

static __always_inline __u16 moa_local_port(struct bpf_sock_ops *ops)
{
	return (__u16)ops->local_port;
}

static __always_inline int moa_is_mapped(struct bpf_sock_ops *ops)
{
	return !ops->remote_ip6[0] && !ops->remote_ip6[1] &&
	       ops->remote_ip6[2] == bpf_htonl(0xffff);
}

static __always_inline __u32 moa_wire_family(struct bpf_sock_ops *ops)
{
	return ops->family == MOA_AF_INET || moa_is_mapped(ops) ? 4 : 6;
}

#endif
