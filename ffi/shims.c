/* Shims for what bindgen cannot express; ffi/README.md says why each one exists. */
#include "shims.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define LOG_LINE_MAX 1024

static setline_log_sink g_log_sink;

static void
log_line(int level, const char *file, const int line, const char *func, const char *format,
	 va_list args)
{
	char text[LOG_LINE_MAX];
	int len;

	(void)func;
	/* With a sink of our own SPDK leaves the choice of level to it. */
	if (level > (int)spdk_log_get_level()) {
		return;
	}
	len = vsnprintf(text, sizeof(text), format, args);
	if (len < 0) {
		return;
	}
	if ((size_t)len >= sizeof(text)) {
		len = sizeof(text) - 1;
	}
	while (len > 0 && text[len - 1] == '\n') {
		text[--len] = '\0';
	}
	g_log_sink(level, file, line, text);
}

void
setline_log_open(setline_log_sink sink, enum spdk_log_level level)
{
	g_log_sink = sink;
	spdk_log_set_print_level(SPDK_LOG_DISABLED);
	spdk_log_set_level(level);
	spdk_log_open(log_line);
}

int
setline_nvmf_transport_create(const char *name, const struct setline_transport_opts *want,
			      spdk_nvmf_transport_create_done_cb cb, void *ctx)
{
	struct spdk_nvmf_transport_opts opts = {0};

	if (!spdk_nvmf_transport_opts_init(name, &opts, sizeof(opts))) {
		return -ENODEV;
	}
#define SET(field) \
	if (want->field != 0) { \
		opts.field = want->field; \
	}
	SET(max_queue_depth)
	SET(max_qpairs_per_ctrlr)
	SET(max_aq_depth)
	SET(in_capsule_data_size)
	SET(max_io_size)
	SET(io_unit_size)
	SET(num_shared_buffers)
	SET(buf_cache_size)
	SET(abort_timeout_sec)
#undef SET
	return spdk_nvmf_transport_create_async(name, &opts, cb, ctx);
}

void
setline_nvme_ctrlr_info(struct spdk_nvme_ctrlr *ctrlr, struct setline_ctrlr_info *info)
{
	const struct spdk_nvme_ctrlr_data *data = spdk_nvme_ctrlr_get_data(ctrlr);

	info->cntlid = data->cntlid;
	info->oncs = data->oncs.raw;
	info->fuses = data->fuses.raw;
	info->vwc_present = data->vwc.present;
	memcpy(info->serial, data->sn, sizeof(info->serial));
	memcpy(info->model, data->mn, sizeof(info->model));
}
