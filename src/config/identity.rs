//! Identifiers that hosts remember: UUID, NGUID and serial number.
//!
//! A host that sees a known namespace come back under another identifier drops the device, so
//! they must survive restarts and be the same at every mover that offers the volume. Where the
//! file does not give them they are derived from names alone:
//!
//! - UUID: version 8 (RFC 9562, section 5.8), its free bits the 128-bit FNV-1a hash of
//!   `setline uuid NQN VOLUME`, where NQN is the group's and VOLUME the volume's name.
//! - NGUID: the UUID's 16 bytes.
//! - Serial (per group): `SL` and the low 64 bits, as 16 hexadecimal digits, of the hash of
//!   `setline serial NQN`.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// A UUID (RFC 9562), in the order its text is read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Uuid(pub [u8; 16]);

/// A namespace globally unique identifier (NVM Express NVM Command Set, Identify Namespace).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Nguid(pub [u8; 16]);

impl Uuid {
    /// The UUID of volume `volume` of the group with `nqn`, by the module's rule.
    #[must_use]
    pub fn derive(nqn: &str, volume: &str) -> Self {
        let mut bytes = fnv1a128(&["setline uuid", nqn, volume]).to_be_bytes();
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }
}

impl From<Uuid> for Nguid {
    fn from(uuid: Uuid) -> Self {
        Self(uuid.0)
    }
}

/// The serial number of the group with `nqn`, by the module's rule.
pub(super) fn derive_serial(nqn: &str) -> String {
    format!("SL{:016x}", fnv1a128(&["setline serial", nqn]) as u64)
}

/// 32 bits that differ between texts, for names of files.
pub(super) fn short_hash(text: &str) -> u32 {
    let hash = fnv1a128(&[text]);
    (hash ^ hash >> 32 ^ hash >> 64 ^ hash >> 96) as u32
}

/// FNV-1a with 128 bits over the parts, joined by single spaces.
fn fnv1a128(parts: &[&str]) -> u128 {
    const OFFSET_BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    parts
        .join(" ")
        .bytes()
        .fold(OFFSET_BASIS, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME))
}

/// Reads exactly 32 hexadecimal digits.
fn hex16(digits: &str) -> Option<[u8; 16]> {
    if digits.len() != 32 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u128::from_str_radix(digits, 16).ok().map(u128::to_be_bytes)
}

/// The text is not the identifier's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an identifier of 32 hexadecimal digits")]
pub struct BadIdentifier;

impl FromStr for Uuid {
    type Err = BadIdentifier;
    fn from_str(text: &str) -> Result<Self, BadIdentifier> {
        let hyphens: Vec<usize> = text.match_indices('-').map(|(at, _)| at).collect();
        if hyphens != [8, 13, 18, 23] {
            return Err(BadIdentifier);
        }
        hex16(&text.replace('-', "")).map(Self).ok_or(BadIdentifier)
    }
}

impl FromStr for Nguid {
    type Err = BadIdentifier;
    fn from_str(text: &str) -> Result<Self, BadIdentifier> {
        hex16(text).map(Self).ok_or(BadIdentifier)
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = format!("{:032x}", u128::from_be_bytes(self.0));
        let (a, b, c, d, e) = (&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
        write!(f, "{a}-{b}-{c}-{d}-{e}")
    }
}

impl fmt::Display for Nguid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Nguid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Uuid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Nguid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_identifiers_never_change() {
        // Golden: a host would drop its devices if a later version derived others.
        let nqn = "nqn.2026-11.io.setline:bank";
        assert_eq!(Uuid::derive(nqn, "v1").to_string(), "40d1304a-ec9f-8efa-81c4-aab9594ed93f");
        assert_eq!(derive_serial(nqn), "SL546f44e431816bf1");
    }

    #[test]
    fn fnv1a_gives_its_published_values() {
        // From the FNV reference code's test vectors.
        assert_eq!(fnv1a128(&[""]), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        assert_eq!(fnv1a128(&["a"]), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
    }

    #[test]
    fn text_forms_round_trip() {
        let uuid = Uuid::derive("nqn", "v");
        assert_eq!(uuid.to_string().parse(), Ok(uuid));
        let nguid = Nguid::from(uuid);
        assert_eq!(nguid.to_string().parse(), Ok(nguid));
        assert_eq!("+0000000-0000-0000-0000-000000000000".parse::<Uuid>(), Err(BadIdentifier));
    }
}
