/* What net_memif needs so that a peer may die at any moment: parts of it are wrapped (linker option
 * --wrap).
 *
 * 1. Keeps its memory mapped while a poller is in it.
 *
 * When a peer goes away, the driver's control thread unmaps the shared memory at once, while a
 * poller may be copying from it: a mover whose peer was killed would be killed too. So the
 * unmapping first waits until every poller that was inside a burst has left it. The driver clears
 * its "connected" flag before it unmaps, so whoever enters afterwards finds nothing to do.
 *
 * 2. Says when a connection has ended.
 *
 * The link status goes down when the driver's thread begins to take a connection apart. To stop or
 * start the device then, from another thread, corrupts both: the control channel is freed twice,
 * and the driver's thread loops over it for ever. Freeing the memory is the last thing that it
 * does, so that is counted.
 *
 * 3. Survives a client that is gone before it is greeted.
 *
 * When the greeting cannot be sent, the driver closes the socket but leaves it registered with
 * EAL's interrupt thread, which then aborts the process. So to the driver the greeting always
 * succeeds; what it reads next says that the client is gone, and that it handles. */
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

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
struct rte_eth_dev *rte_eth_dev_get_by_name(const char *name);

/* EAL has one array of devices, so there are no more addresses of one than this. */
static struct {
	_Atomic(struct rte_eth_dev *) dev;
	_Atomic uint32_t ended;
} g_watched[RTE_MAX_ETHPORTS];

uint32_t *
setline_memif_ended(const char *name)
{
	struct rte_eth_dev *dev = rte_eth_dev_get_by_name(name);

	for (unsigned int i = 0; dev != NULL && i < RTE_MAX_ETHPORTS; i++) {
		struct rte_eth_dev *there = NULL;

		if (atomic_compare_exchange_strong(&g_watched[i].dev, &there, dev) || there == dev) {
			return (uint32_t *)&g_watched[i].ended;
		}
	}
	return NULL;
}

void __real_memif_free_regions(struct rte_eth_dev *dev);
void __wrap_memif_free_regions(struct rte_eth_dev *dev);

void
__wrap_memif_free_regions(struct rte_eth_dev *dev)
{
	setline_memif_wait();
	__real_memif_free_regions(dev);
	for (unsigned int i = 0; i < RTE_MAX_ETHPORTS; i++) {
		if (atomic_load(&g_watched[i].dev) == dev) {
			atomic_fetch_add(&g_watched[i].ended, 1);
		}
	}
}

/* The greeting: a message of 128 bytes whose type is 2, and which names the version of DPDK. */
static int
is_greeting(const struct msghdr *message)
{
	const char *version = rte_version();
	uint16_t type;

	if (message->msg_iovlen != 1 || message->msg_iov[0].iov_len != 128) {
		return 0;
	}
	memcpy(&type, message->msg_iov[0].iov_base, sizeof(type));
	return type == 2 && strncmp((const char *)message->msg_iov[0].iov_base + sizeof(type),
				    version, strlen(version)) == 0;
}

ssize_t __real_sendmsg(int fd, const struct msghdr *message, int flags);
ssize_t __wrap_sendmsg(int fd, const struct msghdr *message, int flags);

ssize_t
__wrap_sendmsg(int fd, const struct msghdr *message, int flags)
{
	ssize_t sent = __real_sendmsg(fd, message, flags);

	return sent < 0 && is_greeting(message) ? (ssize_t)message->msg_iov[0].iov_len : sent;
}
