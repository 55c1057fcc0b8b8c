/* Keeps memif's memory mapped while a poller is in it.
 *
 * When a peer goes away, the driver's control thread unmaps the shared memory at once, while a
 * poller may be copying from it: a mover whose peer was killed would be killed too. So the
 * unmapping is wrapped (linker option --wrap): it first waits until every poller that was inside a
 * burst has left it. The driver clears its "connected" flag before it unmaps, so whoever enters
 * afterwards finds nothing to do. */
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

#include "ffi/dpdk.h"

static struct {
	_Alignas(64) _Atomic uint32_t turns;
} g_gates[SETLINE_MEMIF_GATES];

uint32_t *
setline_memif_gate(unsigned int index)
{
	return index < SETLINE_MEMIF_GATES ? (uint32_t *)&g_gates[index].turns : NULL;
}

void
setline_memif_wait(void)
{
	atomic_thread_fence(memory_order_seq_cst);
	for (unsigned int i = 0; i < SETLINE_MEMIF_GATES; i++) {
		uint32_t turns = atomic_load_explicit(&g_gates[i].turns, memory_order_acquire);

		/* Odd: inside. Any change: it has left since. */
		while (turns % 2 == 1 &&
		       atomic_load_explicit(&g_gates[i].turns, memory_order_acquire) == turns) {
			sched_yield();
		}
	}
}

struct rte_eth_dev;
void __real_memif_free_regions(struct rte_eth_dev *dev);
void __wrap_memif_free_regions(struct rte_eth_dev *dev);

void
__wrap_memif_free_regions(struct rte_eth_dev *dev)
{
	setline_memif_wait();
	__real_memif_free_regions(dev);
}
