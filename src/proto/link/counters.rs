//! What a link counts.

/// Totals since the link was made, over all sessions. The poller owns them; the control thread
/// sums copies.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LinkCounters {
    /// Packets given to the caller for sending, retransmissions and bare ones included.
    pub packets_sent: u64,
    /// Of those, bare ones: acknowledgements, heartbeats, greetings.
    pub bare_sent: u64,
    /// Payload bytes of packets sent.
    pub bytes_sent: u64,
    /// Packets sent again.
    pub retransmitted: u64,
    /// Of those, how many turned out to have been only late.
    pub spurious: u64,
    /// Timeouts without any progress.
    pub timeouts: u64,
    /// Records that the peer has stored.
    pub records_delivered: u64,
    /// Packets taken in, before any check.
    pub packets_received: u64,
    /// Payload bytes of packets that counted as received.
    pub bytes_received: u64,
    /// Packets with a number that had been received before.
    pub duplicates: u64,
    /// Packets whose number lies ahead of the window.
    pub out_of_window: u64,
    /// Packets between other pollers.
    pub misrouted: u64,
    /// Packets of an epoch before the one required (invariant 9).
    pub epoch_old: u64,
    /// Packets of an epoch that this end has not entered.
    pub epoch_new: u64,
    /// Packets of a former incarnation of the peer.
    pub sender_old: u64,
    /// Packets for another incarnation of this end.
    pub receiver_other: u64,
    /// Packets that contradict themselves or the session.
    pub malformed: u64,
    /// Payloads whose checksum does not match.
    pub corrupt: u64,
    /// Records and fragments that the caller could not store.
    pub not_stored: u64,
    /// Sessions begun: the first contact, and each restart of the peer.
    pub sessions: u64,
}
