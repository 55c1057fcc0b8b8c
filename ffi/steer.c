/* Takes a mover's program (steer.bpf.c) off an interface where an earlier life of the mover left it:
 * DPDK's driver attaches it there without a handle, so it stays when the process is killed, and the
 * driver attaches nothing where a program is. */
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/bpf.h>
#include <net/if.h>
#include <string.h>
#include <unistd.h>

#include "ffi/dpdk.h"

int
setline_steer_release(const char *interface, const char *program)
{
	struct bpf_prog_info info = { 0 };
	__u32 id = 0, bytes = sizeof(info);
	int index = (int)if_nametoindex(interface);
	int fd, rc;

	if (index == 0)
		return -errno;
	rc = bpf_xdp_query_id(index, 0, &id);
	if (rc < 0 || id == 0)
		return rc;
	fd = bpf_prog_get_fd_by_id(id);
	if (fd < 0)
		return fd;
	rc = bpf_obj_get_info_by_fd(fd, &info, &bytes);
	close(fd);
	if (rc < 0)
		return rc;
	if (strncmp(info.name, program, sizeof(info.name)) != 0)
		return -EBUSY;
	rc = bpf_xdp_detach(index, 0, NULL);
	return rc < 0 ? rc : 1;
}
