/* What setline binds of DPDK: public headers only. Static inline functions of
 * the allowlist in build.rs get callable wrappers from bindgen. */
#ifndef SETLINE_DPDK_H
#define SETLINE_DPDK_H

#include <rte_alarm.h>
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

/* Macros that bindgen cannot evaluate. */
static const uint64_t SETLINE_TX_MULTI_SEGS = RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
static const uint64_t SETLINE_RX_SCATTER = RTE_ETH_RX_OFFLOAD_SCATTER;
static const uint64_t SETLINE_RSS_UDP4 = RTE_ETH_RSS_IPV4 | RTE_ETH_RSS_NONFRAG_IPV4_UDP;

/* rte_errno is a macro over a thread-local variable. */
static inline int
setline_rte_errno(void)
{
	return rte_errno;
}

/* memif_gate.c: pollers inside a memif burst. A gate's count is odd while its poller is inside. */
#define SETLINE_MEMIF_GATES 256
uint32_t *setline_memif_gate(unsigned int index);
/* Returns when every poller that was inside has left. */
void setline_memif_wait(void);
/* How many connections of the memif device of that name have ended: to be read atomically. */
uint32_t *setline_memif_ended(const char *name);

/* steer.c: takes the XDP program of that name off an interface. 1 when it was there, 0 when none was;
 * a negative errno, -EBUSY when another program is there. */
int setline_steer_release(const char *interface, const char *program);

#endif
