//! Which Ethernet address leads to which peer (RFC 826).
//!
//! The table is fixed when the port is opened: one row per next hop of its peers. Only addresses
//! change, so pollers share it without a lock: an answer may arrive at another queue than the one
//! that asked.

use crate::wire::frame::Mac;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};

/// A row before the port is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextHop {
    /// A peer in the port's subnet, or the router to others.
    pub ip: Ipv4Addr,
    /// Its Ethernet address when configured; asked for when not.
    pub mac: Option<Mac>,
}

/// How long to wait for an answer before asking again.
const ASK_AGAIN_NS: u64 = 100_000_000;
/// After how long an answer is asked for again, though it is used on.
const STALE_NS: u64 = 30_000_000_000;

const FIXED: u64 = 1 << 63;
const KNOWN: u64 = 1 << 62;

struct Row {
    ip: Ipv4Addr,
    /// 48 bits of address and the two flags; 0 while unknown.
    mac: AtomicU64,
    answered_ns: AtomicU64,
    asked_ns: AtomicU64,
}

/// The next hops of one port.
pub(super) struct Neighbours {
    rows: Box<[Row]>,
}

/// What is known of a next hop, in a form that is cheap to compare.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Known(u64);

impl Known {
    pub(super) const NOTHING: Self = Self(0);

    pub(super) fn mac(self) -> Option<Mac> {
        (self.0 != 0).then(|| {
            let [a, b, c, d, e, f, _, _] = self.0.to_le_bytes();
            Mac([a, b, c, d, e, f])
        })
    }
}

fn word(mac: Mac) -> u64 {
    let [a, b, c, d, e, f] = mac.0;
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

impl Neighbours {
    pub(super) fn new(hops: &[NextHop]) -> Self {
        let mut rows: Vec<Row> = Vec::new();
        for hop in hops {
            if rows.iter().any(|row| row.ip == hop.ip) {
                continue;
            }
            let mac = hop.mac.map_or(0, |mac| word(mac) | FIXED | KNOWN);
            rows.push(Row {
                ip: hop.ip,
                mac: AtomicU64::new(mac),
                answered_ns: AtomicU64::new(0),
                asked_ns: AtomicU64::new(0),
            });
        }
        Self { rows: rows.into_boxed_slice() }
    }

    /// The row of `ip`.
    pub(super) fn find(&self, ip: Ipv4Addr) -> Option<usize> {
        self.rows.iter().position(|row| row.ip == ip)
    }

    #[inline]
    pub(super) fn known(&self, row: usize) -> Known {
        Known(self.rows[row].mac.load(Ordering::Relaxed))
    }

    pub(super) fn ip(&self, row: usize) -> Ipv4Addr {
        self.rows[row].ip
    }

    /// Whether to ask for a row now: it is unknown, or known for long. True once per interval,
    /// whichever queue asks.
    pub(super) fn should_ask(&self, row: usize, now_ns: u64) -> bool {
        let row = &self.rows[row];
        let mac = row.mac.load(Ordering::Relaxed);
        if mac & FIXED != 0 {
            return false;
        }
        let stale = now_ns.saturating_sub(row.answered_ns.load(Ordering::Relaxed)) >= STALE_NS;
        if mac != 0 && !stale {
            return false;
        }
        let asked = row.asked_ns.load(Ordering::Relaxed);
        if asked != 0 && now_ns.saturating_sub(asked) < ASK_AGAIN_NS {
            return false;
        }
        let exchange = row.asked_ns.compare_exchange(
            asked,
            now_ns.max(1),
            Ordering::Relaxed,
            Ordering::Relaxed,
        );
        exchange.is_ok()
    }

    /// Takes what an ARP packet says about its sender; others than the next hops are nobody here.
    pub(super) fn learn(&self, ip: Ipv4Addr, mac: Mac, now_ns: u64) {
        let Some(row) = self.find(ip).map(|row| &self.rows[row]) else { return };
        if row.mac.load(Ordering::Relaxed) & FIXED == 0 {
            row.mac.store(word(mac) | KNOWN, Ordering::Relaxed);
            row.answered_ns.store(now_ns, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);

    #[test]
    fn an_unknown_address_is_asked_for_at_intervals_until_it_is_answered() {
        let table = Neighbours::new(&[NextHop { ip: IP, mac: None }]);
        assert_eq!(table.known(0), Known::NOTHING);
        assert!(table.should_ask(0, 5));
        assert!(!table.should_ask(0, 6));
        assert!(table.should_ask(0, 5 + ASK_AGAIN_NS));
        table.learn(IP, MAC, 7);
        assert_eq!(table.known(0).mac(), Some(MAC));
        assert!(!table.should_ask(0, 5 + 3 * ASK_AGAIN_NS));
        assert!(table.should_ask(0, 7 + STALE_NS));
        assert_eq!(table.known(0).mac(), Some(MAC));
    }

    #[test]
    fn a_configured_address_is_neither_asked_for_nor_changed() {
        let table = Neighbours::new(&[NextHop { ip: IP, mac: Some(MAC) }]);
        table.learn(IP, Mac([9; 6]), 1);
        assert_eq!(table.known(0).mac(), Some(MAC));
        assert!(!table.should_ask(0, u64::MAX));
    }

    #[test]
    fn the_same_next_hop_of_several_peers_is_one_row() {
        let hop = NextHop { ip: IP, mac: None };
        let table = Neighbours::new(&[hop, hop]);
        assert_eq!(table.rows.len(), 1);
        table.learn(Ipv4Addr::new(10, 0, 0, 9), MAC, 1);
        assert_eq!(table.known(0), Known::NOTHING);
    }
}
