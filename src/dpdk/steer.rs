//! An interface that the kernel uses, too: which of its frames an AF_XDP port takes (G9).
//!
//! Without more, AF_XDP takes every frame of an interface away from the kernel. Where hosts come by
//! the same interface through the kernel (NVMe/TCP), a small program in the kernel hands the port
//! only what is for its own address (`ffi/steer.bpf.c`), and the rest goes on as ever.

use std::net::Ipv4Addr;
use std::path::Path;

use super::error::{DpdkError, text};
use super::sys;

/// The program, compiled for the kernel, for address 0.0.0.0.
static PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/steer.bpf.o"));
/// Its name. A mover's own has its address in the place of the zeros.
const NAME: &[u8] = b"sl_00000000";
/// What stands before the address in its data.
const MARK: &[u8] = b"setline-ip:\0";

/// What `setline_steer_release` says of another program.
const EBUSY: i32 = -16;

/// The name of the program for `ip`.
fn name(ip: Ipv4Addr) -> String {
    format!("sl_{:08x}", u32::from(ip))
}

/// The program for `ip`; `None` if the compiler has left nothing to put it into.
fn program(ip: Ipv4Addr) -> Option<Vec<u8>> {
    let mut bytes = PROGRAM.to_vec();
    let find = |bytes: &[u8], what: &[u8], from: usize| {
        let rest = bytes.get(from..)?;
        Some(from + rest.windows(what.len()).position(|window| window == what)?)
    };
    let address = find(&bytes, MARK, 0)? + MARK.len();
    bytes.get_mut(address..address + 4)?.copy_from_slice(&ip.octets());
    let mut at = find(&bytes, NAME, 0);
    at?;
    while let Some(found) = at {
        bytes[found..found + NAME.len()].copy_from_slice(name(ip).as_bytes());
        at = find(&bytes, NAME, found + NAME.len());
    }
    Some(bytes)
}

/// Puts the program for the port's address `ip` where the driver will read it, and makes room for it
/// on the interface: one that an earlier life of the mover left there is taken off.
pub(super) fn prepare(
    port: &str,
    interface: &str,
    file: &Path,
    ip: Ipv4Addr,
) -> Result<(), DpdkError> {
    let failed = |call: &'static str, errno: i32| DpdkError::Call {
        call,
        port: port.to_owned(),
        errno,
        text: std::io::Error::from_raw_os_error(errno).to_string(),
    };
    let bytes = program(ip).ok_or_else(|| failed("the program for its interface", 0))?;
    std::fs::write(file, bytes).map_err(|error| {
        failed("writing the program for its interface", error.raw_os_error().unwrap_or(0))
    })?;
    let (device, name) = (text(port, interface)?, text(port, &name(ip))?);
    // SAFETY: two NUL-terminated strings, read only.
    let rc = unsafe { sys::setline_steer_release(device.as_ptr(), name.as_ptr()) };
    match rc {
        0 => {}
        1 => tracing::info!(port, "took an earlier life's program off the interface"),
        EBUSY => {
            let (port, interface) = (port.to_owned(), interface.to_owned());
            return Err(DpdkError::Taken { port, interface });
        }
        rc => return Err(failed("looking for other programs (XDP) at the interface", -rc)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_for_one_address_and_named_after_it() {
        let ip = Ipv4Addr::new(10, 77, 0, 1);
        let made = program(ip).unwrap();
        assert_eq!(made.len(), PROGRAM.len());
        let has = |what: &[u8]| made.windows(what.len()).any(|window| window == what);
        assert!(has(b"sl_0a4d0001") && !has(NAME));
        assert!(has(b"setline-ip:\0\x0a\x4d\x00\x01"));
    }
}
