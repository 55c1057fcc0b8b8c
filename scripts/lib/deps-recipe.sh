# shellcheck shell=bash
# The recipe by which SPDK and DPDK are built: versions, options, what is kept.
# The cache directory's name is the hash of this file's text: any edit here
# makes a new build, and nothing else does. Sourced by scripts/setup.

readonly RECIPE_SPDK_VERSION=26.01
readonly RECIPE_DPDK_VERSION=25.11

# SPDK is in no Debian package of its own. Debian's source package "ceph"
# carries a complete, patched tree of it with its DPDK, ISA-L and libvfio-user.
readonly RECIPE_SOURCE=ceph
readonly RECIPE_SOURCE_SUITES="forky sid"
readonly RECIPE_SOURCE_KNOWN="20.2.4+ds" # upstream versions known to hold the versions above
readonly RECIPE_SOURCE_SUBTREE=src/nvmeof/gateway/spdk
readonly RECIPE_ARCH=x86-64-v3

# Libraries and drivers of DPDK: what SPDK links, the port kinds that setline
# offers (memif, AF_XDP, AF_PACKET, ring) and the NICs it can be given.
readonly RECIPE_DPDK_LIBS=cryptodev,dmadev,gso,hash,ip_frag,power,rcu,security,timer,vhost
readonly RECIPE_DPDK_DRIVERS=bus/auxiliary,bus/pci,bus/vdev,mempool/ring,\
net/af_packet,net/af_xdp,net/ena,net/memif,net/null,net/ring,net/tap,net/vhost,net/virtio,net/vmxnet3,\
net/intel/e1000,net/intel/i40e,net/intel/iavf,net/intel/ice,net/intel/ixgbe,common/iavf,\
power/acpi,power/amd_pstate,power/cppc,power/intel_pstate,power/intel_uncore,power/kvm_vm

# recipe_dpdk_configure SOURCE BUILD PREFIX
recipe_dpdk_configure() {
    meson setup "$2" "$1" --prefix="$3" --libdir=lib \
        --buildtype=release --default-library=static \
        -Dcpu_instruction_set="$RECIPE_ARCH" \
        -Dtests=false -Denable_docs=false "-Ddisable_apps=*" \
        -Denable_libs="$RECIPE_DPDK_LIBS" \
        -Denable_drivers="$RECIPE_DPDK_DRIVERS"
}

# recipe_dpdk_build BUILD PREFIX
# Archives only: the shared libraries that meson always makes beside them are dropped.
recipe_dpdk_build() {
    ninja -C "$1" install && rm -rf "$2"/lib/*.so* "$2"/lib/dpdk "$2"/bin "$2"/share
}

# recipe_spdk_configure SOURCE DPDK_PREFIX
recipe_spdk_configure() (
    cd "$1" || exit 1
    # The nvmf library uses a log component that only the rbd module defines,
    # and that module is not built: SPDK's own programs need it from outside.
    printf '%s\n' '#include "spdk/log.h"' 'SPDK_LOG_REGISTER_COMPONENT(reservation)' >reservation.c
    cc -O2 -Iinclude -c reservation.c -o reservation.o || exit 1
    ./configure --with-dpdk="$2" --target-arch="$RECIPE_ARCH" \
        --with-vfio-user --with-uring \
        --disable-tests --disable-unit-tests --disable-examples --disable-apps \
        --without-vhost --without-virtio --without-crypto --without-nvme-cuse --without-fio
)

# recipe_spdk_build SOURCE JOBS
# Libraries, then the programs that setline's tests and benchmarks use as
# independent peers: target, initiators, benchmark and identify.
recipe_spdk_build() (
    cd "$1" || exit 1
    make -j"$2" || exit 1
    export LDFLAGS="$1/reservation.o"
    for program in app/nvmf_tgt app/spdk_nvme_perf app/spdk_nvme_identify examples/bdev/bdevperf; do
        make -j"$2" -C "$program" || exit 1
    done
)

# recipe_spdk_install SOURCE PREFIX
# Headers, archives, pkg-config files and programs; no objects, no debug data.
recipe_spdk_install() (
    cd "$1" || exit 1
    mkdir -p "$2/bin" "$2/lib/pkgconfig" "$2/include" || exit 1
    cp -r include/spdk "$2/include/" || exit 1
    cp build/lib/*.a isa-l/.libs/libisal.a isa-l-crypto/.libs/libisal_crypto.a \
        build/libvfio-user/usr/local/lib/libvfio-user.a "$2/lib/" || exit 1
    cp build/lib/pkgconfig/*.pc "$2/lib/pkgconfig/" || exit 1
    cp build/bin/nvmf_tgt build/bin/spdk_nvme_perf build/bin/spdk_nvme_identify \
        build/examples/bdevperf "$2/bin/" || exit 1
    strip --strip-debug "$2"/lib/*.a || exit 1
    strip "$2"/bin/* || exit 1
)
