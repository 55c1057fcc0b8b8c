/* What bindgen cannot express; ffi/README.md says why each one exists. */
#ifndef SETLINE_SHIMS_H
#define SETLINE_SHIMS_H

#include <spdk/log.h>
#include <spdk/nvme.h>
#include <spdk/nvmf.h>

/* A log line, formatted, without its newline. Any thread may call it. */
typedef void (*setline_log_sink)(int level, const char *file, int line, const char *text);

/* Routes SPDK's log to sink and sets the level at which lines are made. */
void setline_log_open(setline_log_sink sink, enum spdk_log_level level);

/* The options of an nvmf transport that setline sets; zero means SPDK's default. */
struct setline_transport_opts {
	uint16_t max_queue_depth;
	uint16_t max_qpairs_per_ctrlr;
	uint32_t max_aq_depth;
	uint32_t in_capsule_data_size;
	uint32_t max_io_size;
	uint32_t io_unit_size;
	uint32_t num_shared_buffers;
	uint32_t buf_cache_size;
	uint32_t abort_timeout_sec;
};

/* spdk_nvmf_transport_create_async with those options; -ENODEV for an unknown name. */
int setline_nvmf_transport_create(const char *name, const struct setline_transport_opts *opts,
				  spdk_nvmf_transport_create_done_cb cb, void *ctx);

/* What a controller says about itself; strings as on the wire, padded by spaces. */
struct setline_ctrlr_info {
	uint16_t cntlid;
	uint16_t oncs;
	uint16_t fuses;
	uint8_t vwc_present;
	char serial[20];
	char model[40];
};

void setline_nvme_ctrlr_info(struct spdk_nvme_ctrlr *ctrlr, struct setline_ctrlr_info *info);

#endif
