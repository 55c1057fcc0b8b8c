//! SPDK and DPDK, linked into one process.
#![cfg(feature = "datapath")]
#![allow(unsafe_code)]

#[test]
fn spdk_and_dpdk_of_the_pinned_versions_are_linked() {
    use setline::{dpdk, spdk};
    // SAFETY: returns a static string, no preconditions.
    let dpdk = unsafe { std::ffi::CStr::from_ptr(dpdk::sys::rte_version()) };
    assert!(dpdk.to_str().unwrap().starts_with("DPDK 25.11"));
    assert_eq!((spdk::sys::SPDK_VERSION_MAJOR, spdk::sys::SPDK_VERSION_MINOR), (26, 1));
}
