/* What setline binds of SPDK: public headers only. build.rs lists the functions
 * and types that reach Rust; everything else here stays out of the bindings. */
#ifndef SETLINE_SPDK_H
#define SETLINE_SPDK_H

#include <spdk/bdev.h>
#include <spdk/bdev_module.h>
#include <spdk/env.h>
#include <spdk/env_dpdk.h>
#include <spdk/init.h>
#include <spdk/log.h>
#include <spdk/module/bdev/nvme.h>
#include <spdk/nvme.h>
#include <spdk/nvmf.h>
#include <spdk/rpc.h>
#include <spdk/sock.h>
#include <spdk/thread.h>
#include <spdk/uuid.h>
#include <spdk/version.h>

#include "shims.h"

#endif
