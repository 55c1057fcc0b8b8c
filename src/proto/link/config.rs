//! What a link is built with.

use crate::wire::packet::Site;

/// Settings of one link. [`LinkConfig::default`] suits a data network of jumbo frames.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkConfig {
    /// This end's site, named in every packet.
    pub site: Site,
    /// Bytes that fit behind the packet header; longer messages and records are fragmented.
    pub payload_bytes_max: u16,
    /// Data packets that may be unacknowledged, and numbers that the receiver keeps track of: a
    /// power of two, 64 to 32768.
    pub data_window: u32,
    /// The same for the control channel.
    pub control_window: u32,
    /// Records that may be queued, sent or not: a power of two.
    pub records_max: u32,
    /// Control messages that may be queued, sent or not: a power of two.
    pub messages_max: u32,
    /// Bytes kept for unacknowledged control messages. At least twice the longest message, which
    /// is stored unbroken.
    pub message_store_bytes: u32,
    /// Fragmented records or messages that may be incomplete at once, per channel.
    pub assemblies_max: u16,
    /// Retransmission timeout before a round trip was measured.
    pub rto_initial_ns: u64,
    /// Least retransmission timeout: above the time that an idle peer may sleep.
    pub rto_min_ns: u64,
    /// Greatest retransmission timeout, however often it has doubled.
    pub rto_max_ns: u64,
    /// How much later than its successors a packet may come before it counts as lost; grows by
    /// itself, up to one round trip, when that proves too short.
    pub reorder_ns: u64,
    /// A packet is sent at least this often; also the pace of attempts while there is no session.
    pub heartbeat_ns: u64,
    /// A peer is silent when nothing came for so long.
    pub silent_ns: u64,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            site: Site::Primary,
            payload_bytes_max: 8192 + 128,
            data_window: 1024,
            control_window: 256,
            records_max: 4096,
            messages_max: 512,
            message_store_bytes: 256 * 1024,
            assemblies_max: 64,
            rto_initial_ns: 10_000_000,
            rto_min_ns: 2_000_000,
            rto_max_ns: 200_000_000,
            reorder_ns: 50_000,
            heartbeat_ns: 2_000_000,
            silent_ns: 50_000_000,
        }
    }
}

impl LinkConfig {
    /// The first relation between settings that does not hold, if any, in words.
    #[must_use]
    pub fn fault(&self) -> Option<&'static str> {
        let window = |w: u32| w.is_power_of_two() && (64..=32_768).contains(&w);
        let rules = [
            (window(self.data_window), "data_window must be a power of two, 64 to 32768"),
            (window(self.control_window), "control_window must be a power of two, 64 to 32768"),
            (self.records_max.is_power_of_two(), "records_max must be a power of two"),
            (self.messages_max.is_power_of_two(), "messages_max must be a power of two"),
            (self.payload_bytes_max >= 256, "payload_bytes_max must be at least 256"),
            (
                self.payload_bytes_max as usize
                    >= self.data_window.max(self.control_window) as usize / 8,
                "payload_bytes_max must hold a bitmap of the window",
            ),
            (
                self.message_store_bytes as usize >= 2 * crate::proto::limits::MESSAGE_BYTES_MAX,
                "message_store_bytes must hold two of the longest messages",
            ),
            (self.assemblies_max > 0, "assemblies_max must be at least 1"),
            (self.rto_min_ns > 0, "rto_min_ns must be at least 1"),
            (self.rto_min_ns <= self.rto_max_ns, "rto_min_ns must not exceed rto_max_ns"),
            (self.rto_initial_ns <= self.rto_max_ns, "rto_initial_ns must not exceed rto_max_ns"),
            (self.heartbeat_ns > 0, "heartbeat_ns must be at least 1"),
            (self.heartbeat_ns < self.silent_ns, "heartbeat_ns must be less than silent_ns"),
        ];
        rules.iter().find(|(holds, _)| !holds).map(|(_, rule)| *rule)
    }
}
