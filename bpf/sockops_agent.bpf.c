/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * sockops B, on the agent's cgroup: when the handshake is done, moves the original
 * destination into the storage of the accepted socket, where it lives as long as the socket.
 */
#include "carry.h"

/* A loopback handshake takes microseconds, and while the agent's accept queue is full as long
 * as the kernel repeats SYN (127 s) and SYN-ACK (63 s). An entry that is older belongs to a
 * connection that never came, whose source port another one got. */
#define MOA_CARRY_MAX_AGE_NS 200000000000ull

static __always_inline void moa_keep(struct bpf_sock *sk, const struct moa_dst *carried)
{
	struct moa_dst *kept;

	if (bpf_ktime_get_ns() - carried->stored_ns > MOA_CARRY_MAX_AGE_NS) {
		moa_count(MOA_R_CARRY_STALE);
		return;
	}
	kept = bpf_sk_storage_get(&dst_by_accepted, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!kept) {
		moa_count(MOA_R_CARRY_NO_STORAGE);
		return;
	}
	*kept = *carried;
	moa_count(MOA_R_CARRY_TAKEN);
}

SEC("sockops")
int moa_sockops_agent(struct bpf_sock_ops *ops)
{
	const struct moa_cfg *config = moa_cfg_get();
	struct moa_tuple tuple = {};
	struct moa_dst *carried;
	struct bpf_sock *sk;

	if (ops->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB)
		return 1;
	sk = ops->sk;
	if (!config || !sk || moa_local_port(ops) != config->outbound_port)
		return 1;
	tuple.family = moa_wire_family(ops);
	if (tuple.family == 4) {
		tuple.src_be[0] = ops->remote_ip4;
		tuple.dst_be[0] = ops->local_ip4;
	} else {
		tuple.src_be[0] = ops->remote_ip6[0];
		tuple.src_be[1] = ops->remote_ip6[1];
		tuple.src_be[2] = ops->remote_ip6[2];
		tuple.src_be[3] = ops->remote_ip6[3];
		tuple.dst_be[0] = ops->local_ip6[0];
		tuple.dst_be[1] = ops->local_ip6[1];
		tuple.dst_be[2] = ops->local_ip6[2];
		tuple.dst_be[3] = ops->local_ip6[3];
	}
	tuple.src_port = moa_remote_port(ops);
	tuple.dst_port = moa_local_port(ops);
	carried = bpf_map_lookup_elem(&dst_by_tuple, &tuple);
	if (!carried) {
		moa_count(MOA_R_CARRY_MISSING);
		return 1;
	}
	moa_keep(sk, carried);
	bpf_map_delete_elem(&dst_by_tuple, &tuple);
	return 1;
}
