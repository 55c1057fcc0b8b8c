//! The part of the build script that needs SPDK and DPDK.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Programs that run a data path.
const PROGRAMS: &[&str] = &["setlined", "setline-check", "setline-bench"];

/// SPDK's archives, linked whole: modules register themselves by constructors.
/// Not here: its event framework and reactors (setline has its own loop), and
/// bdev modules that would examine and claim volumes by themselves (gpt, lvol,
/// raid).
const SPDK_ARCHIVES: &[&str] = &[
    "event_bdev",
    "event_accel",
    "event_vmd",
    "event_sock",
    "event_iobuf",
    "event_keyring",
    "init",
    "bdev",
    "bdev_malloc",
    "bdev_null",
    "bdev_nvme",
    "bdev_aio",
    "bdev_uring",
    "bdev_delay",
    "bdev_error",
    "notify",
    "accel",
    "dma",
    "sock",
    "sock_posix",
    "keyring",
    "keyring_file",
    "nvmf",
    "nvme",
    "vfio_user",
    "vmd",
    "thread",
    "trace",
    "rpc",
    "jsonrpc",
    "json",
    "env_dpdk",
    "util",
    "log",
];

/// Types that bindgen lays out wrongly or refuses (packed ones that hold
/// aligned ones): opaque to Rust, reached through shims.
const OPAQUE: &[&str] = &[
    "spdk_nvme_ctrlr_data",
    "spdk_bdev_ext_io_opts",
    "spdk_nvmf_fabric_.*",
    "spdk_nvme_tcp_.*",
    "spdk_nvmf_transport_opts",
    "rte_arp_.*",
    "rte_l2tpv2_.*",
    "rte_gtp_.*",
    "rte_flow_.*",
];

pub(crate) fn run() -> Result<(), String> {
    for path in ["build.rs", "ffi", "scripts/setup", "scripts/lib"] {
        println!("cargo:rerun-if-changed={path}");
    }
    for name in ["SETLINE_SPDK_DIR", "SETLINE_DPDK_DIR", "XDG_CACHE_HOME", "PKG_CONFIG_PATH"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let deps = Deps::find()?;
    println!("cargo:rerun-if-changed={}", deps.spdk.display());
    println!("cargo:rustc-env=SETLINE_SPDK_BIN={}", deps.spdk_bin().display());
    let out = PathBuf::from(env::var("OUT_DIR").map_err(|e| e.to_string())?);
    let cflags = deps.cflags()?;
    bind("spdk", &cflags, &out)?;
    bind("dpdk", &cflags, &out)?;
    compile(&cflags, &out);
    compile_steer(&out)?;
    link(&deps, &out)
}

/// The two installations, each a prefix or (SPDK) a built source tree.
struct Deps {
    spdk: PathBuf,
    dpdk: PathBuf,
}

impl Deps {
    fn find() -> Result<Deps, String> {
        let out = Command::new("scripts/setup")
            .arg("--print-env")
            .output()
            .map_err(|e| format!("scripts/setup does not run: {e}"))?;
        if !out.status.success() {
            return Err(format!(
                "{}\nRun ./scripts/setup once, or build without the data path: \
                 cargo build --no-default-features",
                String::from_utf8_lossy(&out.stderr).trim()
            ));
        }
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let vars: BTreeMap<&str, &str> = text.lines().filter_map(|l| l.split_once('=')).collect();
        let dir = |name: &str| {
            vars.get(name)
                .map(PathBuf::from)
                .ok_or_else(|| format!("scripts/setup --print-env does not name {name}"))
        };
        Ok(Deps { spdk: dir("SETLINE_SPDK_DIR")?, dpdk: dir("SETLINE_DPDK_DIR")? })
    }

    fn spdk_bin(&self) -> PathBuf {
        first_existing(&[self.spdk.join("build/bin"), self.spdk.join("bin")])
    }

    /// Where SPDK's archives are: a source tree's `build/lib`, else `lib`.
    fn spdk_lib(&self) -> PathBuf {
        first_existing(&[self.spdk.join("build/lib"), self.spdk.join("lib")])
    }

    fn pkg_config(&self, args: &[&str]) -> Result<Vec<String>, String> {
        let mut path = vec![
            self.spdk_lib().join("pkgconfig"),
            self.dpdk.join("lib/pkgconfig"),
            self.dpdk.join("lib/x86_64-linux-gnu/pkgconfig"),
        ];
        path.extend(env::var_os("PKG_CONFIG_PATH").iter().flat_map(env::split_paths));
        let joined = env::join_paths(path).map_err(|e| e.to_string())?;
        let out = Command::new("pkg-config")
            .args(args)
            .env("PKG_CONFIG_PATH", joined)
            .output()
            .map_err(|e| format!("pkg-config does not run ({e}); run ./scripts/setup"))?;
        if !out.status.success() {
            return Err(format!("pkg-config: {}", String::from_utf8_lossy(&out.stderr).trim()));
        }
        let text = String::from_utf8_lossy(&out.stdout);
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }

    fn cflags(&self) -> Result<Vec<String>, String> {
        let mut flags = self.pkg_config(&["--cflags", "libdpdk"])?;
        flags.push(format!("-I{}", self.spdk.join("include").display()));
        flags.push("-Iffi".into());
        flags.push("-DALLOW_EXPERIMENTAL_API".into());
        Ok(flags)
    }
}

fn first_existing(candidates: &[PathBuf]) -> PathBuf {
    candidates.iter().find(|p| p.is_dir()).unwrap_or(&candidates[candidates.len() - 1]).clone()
}

/// Bindings of `ffi/NAME.h` to `OUT_DIR/NAME.rs`; wrappers of static inline
/// functions to `OUT_DIR/NAME_inline.c`.
fn bind(name: &str, cflags: &[String], out: &Path) -> Result<(), String> {
    let mut builder = bindgen::Builder::default()
        .header(format!("ffi/{name}.h"))
        .clang_args(cflags)
        .use_core()
        .derive_default(true)
        .derive_debug(false)
        .generate_comments(false)
        .prepend_enum_name(false)
        .layout_tests(true)
        .wrap_static_fns(true)
        .wrap_static_fns_path(out.join(format!("{name}_inline.c")))
        .wrap_static_fns_suffix("_inline");
    for item in allowlist(&format!("ffi/allow/{name}.txt"))? {
        builder = builder.allowlist_item(item);
    }
    for item in OPAQUE {
        builder = builder.opaque_type(item);
    }
    let bindings = builder.generate().map_err(|e| format!("bindgen on ffi/{name}.h: {e}"))?;
    bindings.write_to_file(out.join(format!("{name}.rs"))).map_err(|e| e.to_string())
}

/// One name or pattern a line; `#` starts a comment.
fn allowlist(path: &str) -> Result<Vec<String>, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
    Ok(text
        .lines()
        .map(|l| l.split('#').next().unwrap_or("").trim().to_owned())
        .filter(|l| !l.is_empty())
        .collect())
}

/// C files that every program is linked with.
const ALWAYS: [&str; 2] = ["reservation", "memif_gate"];

fn compile(cflags: &[String], out: &Path) {
    let base = || {
        let mut build = cc::Build::new();
        build.flag("-ffunction-sections").flag("-fdata-sections").opt_level(2).warnings(false);
        for flag in cflags {
            build.flag(flag);
        }
        build
    };
    base()
        .file("ffi/shims.c")
        .file("ffi/steer.c")
        .file(out.join("spdk_inline.c"))
        .file(out.join("dpdk_inline.c"))
        .include(".")
        .compile("setline_shims");
    // Linked by name below, whatever a program refers to: a constructor of its own, and symbols that
    // the linker puts in the place of others.
    for name in ALWAYS {
        let objects = base().file(format!("ffi/{name}.c")).include(".").compile_intermediates();
        for object in objects {
            let _ = fs::copy(object, out.join(format!("{name}.o")));
        }
    }
}

/// The program that runs in the kernel, for AF_XDP interfaces that are shared with it.
fn compile_steer(out: &Path) -> Result<(), String> {
    let failed = |said: String| format!("clang -target bpf on ffi/steer.bpf.c: {}", said.trim());
    // With debugging information comes the description of its map (BTF) that libbpf wants.
    let output = Command::new("clang")
        .args(["-O2", "-g", "-Wall", "-target", "bpf", "-c", "ffi/steer.bpf.c", "-o"])
        .arg(out.join("steer.bpf.o"))
        .output()
        .map_err(|error| failed(format!("{error}; run ./scripts/setup")))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(failed(String::from_utf8_lossy(&output.stderr).into_owned())),
    }
}

fn link(deps: &Deps, out: &Path) -> Result<(), String> {
    let dpdk = deps.pkg_config(&["--libs", "--static", "libdpdk"])?;
    let system = deps.pkg_config(&["--libs", "--static", "spdk_syslibs"])?;
    let mut args: Vec<String> = vec![
        format!("-L{}", deps.spdk_lib().display()),
        format!("-L{}", deps.spdk.join("build/libvfio-user/usr/local/lib").display()),
    ];
    args.extend(dpdk.iter().filter(|a| a.starts_with("-L")).cloned());
    for symbol in ["memif_free_regions", "sendmsg"] {
        args.push(format!("-Wl,--wrap={symbol}")); // ffi/memif_gate.c
    }
    args.push("-Wl,--whole-archive".into());
    args.extend(SPDK_ARCHIVES.iter().map(|a| format!("-l:libspdk_{a}.a")));
    // Every driver of this DPDK, each archive once (the linker refuses doubles).
    args.extend(dpdk.iter().filter(|a| a.starts_with("-l:")).cloned());
    args.push("-Wl,--no-whole-archive".into());
    args.extend(ALWAYS.map(|name| out.join(format!("{name}.o")).display().to_string()));
    args.extend(system.iter().filter(|a| a.ends_with(".a")).cloned());
    args.push("-l:libvfio-user.a".into());
    let mut plain: Vec<String> = dpdk
        .into_iter()
        .chain(system)
        .filter(|a| a.starts_with("-l") && !a.starts_with("-l:") && !a.starts_with("-lrte_"))
        .filter(|a| a != "-lvfio-user")
        .collect();
    plain.sort();
    plain.dedup();
    args.extend(plain);
    let present = PROGRAMS.iter().filter(|p| Path::new(&format!("src/bin/{p}.rs")).exists());
    for program in present {
        for arg in &args {
            println!("cargo:rustc-link-arg-bin={program}={arg}");
        }
    }
    let tests = fs::read_dir("tests").map(|d| d.flatten().count()).unwrap_or(0);
    if tests > 0 {
        for arg in &args {
            println!("cargo:rustc-link-arg-tests={arg}");
        }
    }
    Ok(())
}
