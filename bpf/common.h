/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What several hooks need: the switches, the counters, the agent's pulse. */
#ifndef MOA_COMMON_H
#define MOA_COMMON_H

#include <linux/bpf.h>
#include <linux/in.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "maps.h"

/* From <sys/socket.h>, which needs a libc for the target. */
#define MOA_AF_INET 2
#define MOA_AF_INET6 10

/* Cgroup hooks: 1 lets the call go on. We never forbid one. */
#define MOA_ALLOW 1

#define MOA_LOOPBACK_BE bpf_htonl(0x7f000001) /* 127.0.0.1 */
#define MOA_SPREAD_BE bpf_htonl(0x7f400000) /* 127.64.0.0 */
#define MOA_SPREAD_MASK_BE bpf_htonl(0xffff0000)
#define MOA_LOOP_GUARD_BE bpf_htonl(0x7f000006) /* 127.0.0.6, as Istio's inbound guard */

static __always_inline void moa_count(__u32 reason)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &reason);

	if (value)
		*value += 1;
}

static __always_inline const struct moa_cfg *moa_cfg_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&cfg, &zero);
}

/* The node's switch. One that waits to be confirmed falls back here, so that nothing in user
 * space has to live for it. */
static __always_inline int moa_is_on(const struct moa_cfg *config)
{
	return (config->flags & MOA_CFG_ENABLED) &&
	       (!config->on_until_ns || bpf_ktime_get_ns() < config->on_until_ns);
}

/* Whether the agent's event loop has turned lately: sees a hung agent, and one whose
 * listener is only kept open by another process. */
static __always_inline int moa_heartbeat_fresh(const struct moa_cfg *config)
{
	__u32 zero = 0;
	__u64 *beat = bpf_map_lookup_elem(&heartbeat, &zero);
	__u64 now = bpf_ktime_get_ns();

	if (!beat || !*beat)
		return 0;
	/* A beat of another CPU may lie a little ahead of our clock reading; one that lies far
	 * ahead is of another clock (a time namespace) and says nothing. */
	if (*beat >= now)
		return *beat - now <= config->heartbeat_max_age_ns;
	return now - *beat <= config->heartbeat_max_age_ns;
}

static __always_inline int moa_is_loopback4(__u32 addr_be)
{
	return (addr_be & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
}

#endif
