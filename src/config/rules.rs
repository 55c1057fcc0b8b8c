//! What may stand at a key: each rule reads a value and can say what it allows.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;

use toml::de::DeValue;

use super::limits::{NQN_BYTES_MAX, SOCKET_PATH_BYTES_MAX};
use super::types::{FileEngine, MemifRole, Role};

type Read<T> = Box<dyn Fn(&DeValue<'_>) -> Option<T>>;

/// Reads values of one kind.
pub(super) struct Rule<T> {
    allowed: String,
    read: Read<T>,
}

impl<T> Rule<T> {
    fn new(allowed: impl Into<String>, read: impl Fn(&DeValue<'_>) -> Option<T> + 'static) -> Self {
        Self { allowed: allowed.into(), read: Box::new(read) }
    }
    /// What may stand there.
    pub(super) fn allowed(&self) -> &str {
        &self.allowed
    }
    /// The value, if it may stand there.
    pub(super) fn read(&self, value: &DeValue<'_>) -> Option<T> {
        (self.read)(value)
    }
}

/// An integer within `range`.
pub(super) fn int<T>(range: RangeInclusive<i64>) -> Rule<T>
where
    T: TryFrom<i64> + 'static,
{
    let allowed = format!("an integer from {} to {}", range.start(), range.end());
    Rule::new(allowed, move |value| {
        let DeValue::Integer(number) = value else { return None };
        let number = i64::from_str_radix(number.as_str(), number.radix()).ok()?;
        if range.contains(&number) { T::try_from(number).ok() } else { None }
    })
}

/// One of a few integers.
pub(super) fn int_of(choices: &'static [u32]) -> Rule<u32> {
    let names: Vec<String> = choices.iter().map(u32::to_string).collect();
    Rule::new(names.join(" or "), move |value| {
        let DeValue::Integer(number) = value else { return None };
        let number = u32::from_str_radix(number.as_str(), number.radix()).ok()?;
        choices.contains(&number).then_some(number)
    })
}

/// One of a few words.
pub(super) fn one_of<T: Copy + 'static>(choices: &'static [(&'static str, T)]) -> Rule<T> {
    let names: Vec<String> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
    Rule::new(names.join(" or "), move |value| {
        let text = value.as_str()?;
        choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value)
    })
}

/// A name: 1 to 32 letters, digits, `-`, `_` and `.`, the first a letter or digit. It becomes
/// part of file names and NQNs.
pub(super) fn name() -> Rule<String> {
    Rule::new(
        "a name of 1 to 32 letters, digits, '-', '_' and '.', beginning with a letter or digit",
        |value| {
            let text = value.as_str()?;
            let first = text.bytes().next()?.is_ascii_alphanumeric();
            let rest = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            (first && rest && text.len() <= 32).then(|| text.to_owned())
        },
    )
}

/// Printable ASCII of at most `bytes_max` bytes, not empty.
pub(super) fn ascii(bytes_max: usize) -> Rule<String> {
    Rule::new(format!("1 to {bytes_max} printable ASCII characters"), move |value| {
        let text = value.as_str()?;
        let fits = (1..=bytes_max).contains(&text.len());
        (fits && text.bytes().all(|b| (0x20..0x7f).contains(&b))).then(|| text.to_owned())
    })
}

/// An absolute path.
pub(super) fn path() -> Rule<PathBuf> {
    Rule::new("an absolute path", |value| {
        let path = PathBuf::from(value.as_str()?);
        path.is_absolute().then_some(path)
    })
}

/// An absolute path short enough for a Unix socket.
pub(super) fn socket_path() -> Rule<PathBuf> {
    let allowed = format!("an absolute path of at most {SOCKET_PATH_BYTES_MAX} bytes");
    Rule::new(allowed, |value| {
        let text = value.as_str()?;
        let path = PathBuf::from(text);
        (path.is_absolute() && text.len() <= SOCKET_PATH_BYTES_MAX).then_some(path)
    })
}

/// Text that `T` reads itself.
pub(super) fn parsed<T: FromStr + 'static>(allowed: &str) -> Rule<T> {
    Rule::new(allowed, |value| value.as_str()?.parse().ok())
}

/// An IPv4 or IPv6 address.
pub(super) fn ip() -> Rule<IpAddr> {
    parsed("an IP address")
}

/// A PCI function, `DDDD:BB:DD.F`.
pub(super) fn pci_address() -> Rule<String> {
    Rule::new("a PCI address like \"0000:3b:00.0\"", |value| {
        let text = value.as_str()?;
        let shape = text.len() == 12
            && text.bytes().enumerate().all(|(at, b)| match at {
                4 | 7 => b == b':',
                10 => b == b'.',
                11 => (b'0'..=b'7').contains(&b),
                _ => b.is_ascii_hexdigit(),
            });
        shape.then(|| text.to_ascii_lowercase())
    })
}

/// Where an etcd server answers clients, `http://HOST:PORT`.
pub(super) fn endpoint() -> Rule<String> {
    let allowed = "an etcd client address like \"http://10.0.0.1:2379\" (https is not supported)";
    Rule::new(allowed, |value| {
        let text = value.as_str()?;
        let (host, port) = text.strip_prefix("http://")?.rsplit_once(':')?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
        let fits = !host.is_empty() && host.bytes().all(plain);
        (fits && port.parse::<u16>().is_ok_and(|port| port > 0)).then(|| text.to_owned())
    })
}

/// An NVMe qualified name of the `nqn.yyyy-mm.domain:name` form (NVM Express Base Specification
/// 2.0, section 4.5), as SPDK demands it.
pub(super) fn nqn() -> Rule<String> {
    let allowed =
        format!("an NQN like \"nqn.2026-11.io.example:name\", at most {NQN_BYTES_MAX} bytes");
    Rule::new(allowed, |value| {
        let text = value.as_str()?;
        is_nqn(text).then(|| text.to_owned())
    })
}

fn is_nqn(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("nqn.") else { return false };
    let Some((domain, name)) = rest.split_once(':') else { return false };
    let bytes = domain.as_bytes();
    let digits = |range: std::ops::Range<usize>| {
        bytes.get(range).is_some_and(|part| part.iter().all(u8::is_ascii_digit))
    };
    let date = digits(0..4)
        && bytes.get(4) == Some(&b'-')
        && digits(5..7)
        && bytes.get(7) == Some(&b'.')
        && matches!(&bytes[5..7], [b'0', b'1'..=b'9'] | [b'1', b'0'..=b'2']);
    let labels = date
        && domain[8..].split('.').all(|label| {
            label.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
                && label.bytes().last().is_some_and(|b| b.is_ascii_alphanumeric())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        });
    labels && !name.is_empty() && text.len() <= NQN_BYTES_MAX && !name.contains(char::is_control)
}

/// A Linux interface name (at most 15 bytes, no `/`, no white space).
pub(super) fn interface() -> Rule<String> {
    Rule::new("the name of a network interface, 1 to 15 bytes", |value| {
        let text = value.as_str()?;
        let plain = text.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':');
        ((1..=15).contains(&text.len()) && plain).then(|| text.to_owned())
    })
}

/// What a site does.
pub(super) fn role() -> Rule<Role> {
    one_of(&[("primary", Role::Primary), ("secondary", Role::Secondary)])
}

/// Which end of a memif a port is.
pub(super) fn memif_role() -> Rule<MemifRole> {
    one_of(&[("server", MemifRole::Server), ("client", MemifRole::Client)])
}

/// Yes or no.
pub(super) fn boolean() -> Rule<bool> {
    Rule::new("true or false", |value| value.as_bool())
}

/// How a file is read and written.
pub(super) fn engine() -> Rule<FileEngine> {
    one_of(&[("aio", FileEngine::Aio), ("uring", FileEngine::Uring)])
}
