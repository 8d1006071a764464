/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The one object that is shipped: every hook over one set of maps. */
#include "connect4.bpf.c"
#include "connect6.bpf.c"
#include "sockops_caller.bpf.c"
#include "sockops_agent.bpf.c"
#include "getsockopt.bpf.c"
#include "getpeername.bpf.c"
#include "sk_lookup.bpf.c"

/* Helpers such as bpf_sk_lookup_tcp ask for a licence that is compatible with the GPL. */
char LICENSE[] SEC("license") = "GPL";
