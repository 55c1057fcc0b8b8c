# shellcheck shell=bash
# 2 MiB hugepages: reserved at run time, hugetlbfs mounted. They last until the
# next boot; an appliance reserves them on the kernel command line instead.

readonly HUGE_MIB_DEFAULT=4096
readonly HUGE_SYS=/sys/kernel/mm/hugepages/hugepages-2048kB

hugepages_mib() { echo $(($(<"$HUGE_SYS/nr_hugepages") * 2)); }

hugepages_reserve() {
    local want=${SETLINE_HUGE_MIB:-$HUGE_MIB_DEFAULT} have total
    [[ $want =~ ^[0-9]+$ ]] || die "SETLINE_HUGE_MIB is '$want'; a number of MiB is expected."
    [[ -d $HUGE_SYS ]] || die "this kernel has no 2 MiB hugepages ($HUGE_SYS is missing)."
    have=$(hugepages_mib)
    if ((have < want)); then
        total=$(($(awk '/^MemTotal:/{print $2}' /proc/meminfo) / 1024))
        ((want - have <= total * 3 / 4)) ||
            die "$want MiB of hugepages are wanted, this machine has $total MiB of memory." \
                "Set SETLINE_HUGE_MIB to less (a lab of five small movers needs about 3072)."
        need_root "to reserve hugepages ($have of $want MiB are there)"
        hugepages_grow "$want"
        have=$(hugepages_mib)
        ((have >= want)) ||
            die "only $have of $want MiB of hugepages could be reserved: free memory is too little or too scattered." \
                "Stop what uses much memory, or reboot, or set SETLINE_HUGE_MIB to less."
    fi
    if ! grep -q ' hugetlbfs ' /proc/mounts; then
        need_root "to mount hugetlbfs"
        mkdir -p /dev/hugepages
        mount -t hugetlbfs none /dev/hugepages ||
            die "hugetlbfs could not be mounted on /dev/hugepages." \
                "In a container, run it with the host's /dev/hugepages passed in."
    fi
    ok "hugepages: $have MiB of 2 MiB pages, $(awk '$3 == "hugetlbfs" {print $2; exit}' /proc/mounts)"
}

# hugepages_grow MIB : asks the kernel, after compacting memory if need be.
hugepages_grow() {
    local pages=$((($1 + 1) / 2))
    echo "$pages" >"$HUGE_SYS/nr_hugepages" 2>/dev/null ||
        die "the kernel refuses to reserve hugepages." \
            "In a container, reserve them on the host: echo $pages > $HUGE_SYS/nr_hugepages"
    (($(<"$HUGE_SYS/nr_hugepages") >= pages)) && return
    { sync; echo 3 >/proc/sys/vm/drop_caches; echo 1 >/proc/sys/vm/compact_memory; } 2>/dev/null || true
    echo "$pages" >"$HUGE_SYS/nr_hugepages" || true
}
