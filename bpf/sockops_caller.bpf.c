/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * sockops A, on the services' cgroups: before the SYN leaves, hands the original destination
 * over under the connection's tuple. The source port is known only now.
 */
#include "carry.h"

SEC("sockops")
int moa_sockops_caller(struct bpf_sock_ops *ops)
{
	struct moa_tuple tuple = {};
	struct moa_dst *dst;
	struct bpf_sock *sk;

	if (ops->op != BPF_SOCK_OPS_TCP_CONNECT_CB)
		return 1;
	sk = ops->sk;
	if (!sk)
		return 1;
	dst = bpf_sk_storage_get(&dst_by_caller, sk, NULL, 0);
	if (!dst || dst->via_peer)
		return 1;
	tuple.family = moa_wire_family(ops);
	if (tuple.family == 4) {
		tuple.src_be[0] = ops->local_ip4;
		tuple.dst_be[0] = ops->remote_ip4;
	} else {
		tuple.src_be[0] = ops->local_ip6[0];
		tuple.src_be[1] = ops->local_ip6[1];
		tuple.src_be[2] = ops->local_ip6[2];
		tuple.src_be[3] = ops->local_ip6[3];
		tuple.dst_be[0] = ops->remote_ip6[0];
		tuple.dst_be[1] = ops->remote_ip6[1];
		tuple.dst_be[2] = ops->remote_ip6[2];
		tuple.dst_be[3] = ops->remote_ip6[3];
	}
	tuple.src_port = moa_local_port(ops);
	tuple.dst_port = moa_remote_port(ops);
	/* TCP_FASTOPEN_CONNECT sends the SYN with the first write, however late that is. */
	dst->stored_ns = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&dst_by_tuple, &tuple, dst, BPF_ANY))
		moa_count(MOA_R_CARRY_STORE_FAILED);
	else
		moa_count(MOA_R_CARRY_STORED);
	return 1;
}
