/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What the decision about one connect() is made of. */
#ifndef MOA_FLOW_H
#define MOA_FLOW_H

#include "common.h"

/* Where a connection was going, and where it is sent. family says how both are read. */
struct moa_flow {
	__u32 before_be[4];
	__u32 after_be[4];
	__u16 before_port_be;
	__u16 after_port_be;
	__u8 family; /* 4 or 6; a v4-mapped address is 4 */
};

#endif
