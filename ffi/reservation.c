/* SPDK's nvmf library uses a log component that only its rbd module defines,
 * and that module is not linked. */
#include <spdk/log.h>

SPDK_LOG_REGISTER_COMPONENT(reservation)
