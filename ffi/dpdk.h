/* What setline binds of DPDK: public headers only. Static inline functions of
 * the allowlist in build.rs get callable wrappers from bindgen. */
#ifndef SETLINE_DPDK_H
#define SETLINE_DPDK_H

#include <rte_bus_vdev.h>
#include <rte_dev.h>
#include <rte_errno.h>
#include <rte_eth_ring.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>
#include <rte_mempool.h>
#include <rte_ring.h>
#include <rte_version.h>

/* rte_errno is a macro over a thread-local variable. */
static inline int
setline_rte_errno(void)
{
	return rte_errno;
}

#endif
