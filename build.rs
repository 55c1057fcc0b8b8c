//! Binds and links SPDK and DPDK; does nothing without the feature `datapath`.
//!
//! Where they are is `scripts/setup`'s knowledge: its `--print-env` is asked,
//! so there is one search order. Bindings come from the narrow headers in
//! `ffi/` through the allowlists in `ffi/allow/`. Link arguments go to the
//! programs and integration tests that run a data path, not to the library:
//! `setline` and `setline-sim` stay free of SPDK.

#[cfg(not(feature = "datapath"))]
fn main() {
    println!("cargo:rerun-if-changed=build.rs");
}

#[cfg(feature = "datapath")]
fn main() {
    if let Err(message) = datapath::run() {
        eprintln!("\nerror: {message}\n");
        std::process::exit(1);
    }
}

#[cfg(feature = "datapath")]
#[path = "ffi/build/datapath.rs"]
mod datapath;
