# shellcheck shell=bash
# Finds SPDK and DPDK, or fetches and builds them by the recipe.
#
# Where they may be, in this order: named by SETLINE_SPDK_DIR, known to
# pkg-config, in the cache. A cache entry appears under its final name only
# when it is complete, so what is found there is whole.

readonly CACHE=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/setline
# The hash is of the recipe's text alone: what else changes here does not rebuild.
DEPS=$CACHE/deps-$(sha256sum "$RECIPE_FILE" | cut -c1-12)
readonly DEPS
SPDK_DIR='' DPDK_DIR=''

# spdk_version DIR : "26.01" of an install prefix or a built tree, or nothing
spdk_version() {
    local header=$1/include/spdk/version.h
    [[ -r $header ]] || return 0
    awk '$1 == "#define" && $2 == "SPDK_VERSION_MAJOR" {a = $3}
         $1 == "#define" && $2 == "SPDK_VERSION_MINOR" {b = $3}
         END {if (a != "") printf "%02d.%02d", a, b}' "$header"
}

# dpdk_version DIR : "25.11", from the pkg-config file
dpdk_version() {
    local pc
    pc=$(find "$1" -name libdpdk-libs.pc -print -quit 2>/dev/null) || true
    [[ -n $pc ]] || return 0
    awk '/^Version:/ {split($2, v, "."); printf "%s.%s", v[1], v[2]}' "$pc"
}

# deps_locate : sets SPDK_DIR and DPDK_DIR, or returns 1
deps_locate() {
    local found
    if [[ -n ${SETLINE_SPDK_DIR-} ]]; then
        SPDK_DIR=$SETLINE_SPDK_DIR DPDK_DIR=${SETLINE_DPDK_DIR:-$SETLINE_SPDK_DIR}
        found=$(spdk_version "$SPDK_DIR")
        [[ $found == "$RECIPE_SPDK_VERSION" ]] ||
            die "SETLINE_SPDK_DIR ($SPDK_DIR) holds SPDK '${found:-none}', $RECIPE_SPDK_VERSION is needed." \
                "Name a built SPDK $RECIPE_SPDK_VERSION, or unset the variable and let setup build one."
        found=$(dpdk_version "$DPDK_DIR")
        [[ $found == "$RECIPE_DPDK_VERSION" ]] ||
            die "no DPDK $RECIPE_DPDK_VERSION in $DPDK_DIR (found '${found:-none}')." \
                "Name the DPDK that this SPDK was built with by SETLINE_DPDK_DIR."
        return 0
    fi
    SPDK_DIR=$(pkg-config --variable=libdir spdk_nvmf 2>/dev/null) || true
    SPDK_DIR=${SPDK_DIR%/lib*}
    if [[ -n $SPDK_DIR && $(spdk_version "$SPDK_DIR") == "$RECIPE_SPDK_VERSION" &&
        $(pkg-config --modversion libdpdk-libs 2>/dev/null) == "$RECIPE_DPDK_VERSION"* ]]; then
        DPDK_DIR=$(pkg-config --variable=prefix libdpdk-libs)
        return 0
    fi
    SPDK_DIR=$DEPS/spdk DPDK_DIR=$DEPS/dpdk
    [[ -d $DEPS ]]
}

# print_env : what build.rs reads
print_env() {
    deps_locate || die "SPDK and DPDK are not built yet." "Run: scripts/setup"
    printf 'SETLINE_SPDK_DIR=%s\nSETLINE_DPDK_DIR=%s\n' "$SPDK_DIR" "$DPDK_DIR"
}

deps_build() {
    local work
    mkdir -p "$CACHE"
    exec 8>"$CACHE/lock"
    if ! flock -n 8; then
        note "another setup is building SPDK and DPDK; waiting for it"
        flock 8
    fi
    deps_locate && { ok "SPDK and DPDK were built meanwhile: $DEPS"; return; }
    rm -rf "$CACHE"/build.* # of a setup that was killed; the lock is ours
    check_room
    # meson must find Debian's python3 (it has pyelftools), not another on PATH.
    export PATH=/usr/bin:$PATH
    unset LDFLAGS CFLAGS DESTDIR
    work=$(mktemp -d "$CACHE/build.XXXXXX")
    # shellcheck disable=SC2064
    trap "rm -rf '$work'" EXIT
    local tree=$work/tree/$RECIPE_SOURCE_SUBTREE jobs
    jobs=$(nproc)
    note "SPDK and DPDK are built once, about six minutes on two cores"
    source_fetch "$work"
    step "configuring DPDK $RECIPE_DPDK_VERSION" \
        recipe_dpdk_configure "$tree/dpdk" "$work/dpdk-build" "$work/out/dpdk" ||
        die_log "DPDK could not be configured."
    step "building DPDK" recipe_dpdk_build "$work/dpdk-build" "$work/out/dpdk" || die_log "DPDK did not build."
    step "configuring SPDK $RECIPE_SPDK_VERSION" recipe_spdk_configure "$tree" "$work/out/dpdk" ||
        die_log "SPDK could not be configured."
    step "building SPDK" recipe_spdk_build "$tree" "$jobs" || die_log "SPDK did not build."
    step "installing" deps_install "$work" "$tree" || die_log "SPDK could not be installed."
    ok "SPDK and DPDK: $DEPS ($(du -sh "$DEPS" | cut -f1))"
}

# deps_install WORK TREE : final paths in the pkg-config files, then one rename
deps_install() {
    recipe_spdk_install "$2" "$1/out/spdk" || return 1
    sed -i -e "s|$2/build/lib|$DEPS/spdk/lib|g" -e "s|$2/build/include|$DEPS/spdk/include|g" \
        -e "s|$2/isa-l\(-crypto\)\?/.libs|$DEPS/spdk/lib|g" -e "s|$1/out/|$DEPS/|g" \
        "$1"/out/*/lib/pkgconfig/*.pc || return 1
    mv -T "$1/out" "$DEPS"
}

check_room() {
    local mem disk
    mem=$(($(awk '/^MemAvailable:/{print $2}' /proc/meminfo) / 1024))
    ((mem >= 2048)) ||
        die "building SPDK and DPDK needs 2048 MiB of free memory, $mem MiB are free." \
            "Stop something, add swap, or build them elsewhere and set SETLINE_SPDK_DIR."
    disk=$(df --output=avail -m "$CACHE" | tail -n1)
    ((disk >= 4096)) ||
        die "building SPDK and DPDK needs 4096 MiB of disk under $CACHE, $disk MiB are free." \
            "Make room, or set XDG_CACHE_HOME to a larger file system."
}

# source_fetch WORK : the source tree under WORK/tree
source_fetch() {
    local work=$1 mirror suite versions='' version='' unreached='' known keyring dir
    mirror=${SETLINE_DEBIAN_MIRROR:-$(apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' \
        'Created-By: Packages' 2>/dev/null | awk '$1 == "Debian" && $2 == "Debian" {print $3; exit}')}
    [[ -n $mirror ]] ||
        die "this system's apt names no Debian mirror (is it not Debian?)." \
            "Set SETLINE_DEBIAN_MIRROR to the address of one, or SETLINE_SPDK_DIR to a built SPDK."
    keyring=$(ls /usr/share/keyrings/debian-archive-keyring.{pgp,gpg} 2>/dev/null | head -n1) || true
    # A source list of its own, so that the system's apt state is not touched.
    mkdir -p "$work/lists/partial" "$work/download" "$work/tree"
    for suite in $RECIPE_SOURCE_SUITES; do
        printf 'deb-src %s %s %s main\n' "${keyring:+[signed-by=$keyring]}" "$mirror" "$suite" >"$work/sources.list"
        export APT_CONFIG=$work/apt.conf
        cat >"$APT_CONFIG" <<CONF
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "$work/lists";
Dir::Cache "$work";
APT::Sandbox::User "root";
CONF
        if ! step "reading Debian $suite's source index" \
            apt-get -o Acquire::Retries=3 -o APT::Update::Error-Mode=any update; then
            unreached+="$suite "
            continue
        fi
        for version in $(apt-cache showsrc "$RECIPE_SOURCE" 2>/dev/null | awk '/^Version:/{print $2}'); do
            versions+="$version ($suite) "
            for known in $RECIPE_SOURCE_KNOWN; do
                [[ ${version%-*} == "$known" ]] && break 3
            done
        done
        version=''
    done
    [[ -n $version || -z $unreached ]] ||
        die_log "the source index of Debian ${unreached% } could not be fetched from $mirror." \
            "Is there a network (proxy settings)? Set SETLINE_DEBIAN_MIRROR to a mirror that has these suites."
    [[ -n $version ]] ||
        die "Debian's source package $RECIPE_SOURCE has moved on: found ${versions:-nothing}; known to work: $RECIPE_SOURCE_KNOWN." \
            "Build SPDK $RECIPE_SPDK_VERSION with DPDK $RECIPE_DPDK_VERSION by hand and set SETLINE_SPDK_DIR and SETLINE_DPDK_DIR," \
            "or set SETLINE_DEBIAN_MIRROR to a snapshot archive of a date that had it."
    step "fetching the source of $RECIPE_SOURCE $version (250 MB)" source_download "$work/download" "$version" ||
        die_log "the source package could not be fetched." "Is there a network? Run scripts/setup again."
    unset APT_CONFIG
    step "unpacking SPDK and DPDK" source_unpack "$work" ||
        die_log "the source package could not be unpacked, or lacks $RECIPE_SOURCE_SUBTREE."
    rm -rf "$work/download" "$work/lists"
    dir=$work/tree/$RECIPE_SOURCE_SUBTREE
    [[ $(<"$dir/VERSION") == "$RECIPE_SPDK_VERSION"* && $(<"$dir/dpdk/VERSION") == "$RECIPE_DPDK_VERSION"* ]] ||
        die "$RECIPE_SOURCE $version holds SPDK $(<"$dir/VERSION") and DPDK $(<"$dir/dpdk/VERSION")," \
            "known to work: SPDK $RECIPE_SPDK_VERSION and DPDK $RECIPE_DPDK_VERSION."
}

# --tar-only: the packaging's own part is not needed, and a missing one must not fail the fetch.
source_download() (
    cd "$1" && apt-get -o Acquire::Retries=3 source --download-only --tar-only "$RECIPE_SOURCE=$2"
)

source_unpack() {
    tar -xf "$1"/download/*.orig.tar.* -C "$1/tree" --strip-components=1 --wildcards "*/$RECIPE_SOURCE_SUBTREE" &&
        [[ -f $1/tree/$RECIPE_SOURCE_SUBTREE/configure ]]
}
