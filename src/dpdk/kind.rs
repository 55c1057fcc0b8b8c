//! The kinds of ports and what each driver wants.

use std::path::PathBuf;

/// What a port is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A NIC that DPDK drives, by PCI address (`DDDD:BB:DD.F`).
    Pci(String),
    /// Shared memory to one other process on this machine.
    Memif {
        /// Unix socket through which the two ends meet.
        socket: PathBuf,
        /// Which end this is.
        role: MemifRole,
        /// Number of the interface on the socket, the same at both ends.
        id: u32,
    },
    /// A Linux interface through AF_XDP.
    AfXdp {
        /// Its name.
        interface: String,
        /// Where it is shared with the kernel: the file for the program that leaves the kernel what is not
        /// for the port. None where the port takes every frame.
        steer: Option<PathBuf>,
    },
    /// A Linux interface through AF_PACKET.
    AfPacket(String),
    /// A pair of rings per queue within this process: the first to open the name has one end, the
    /// second the other.
    Ring(String),
}

/// Which end of a memif a port is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemifRole {
    /// Creates the socket; comes and goes without the client's memory.
    Server,
    /// Connects to it, and provides the memory.
    Client,
}

/// How buffers of a port are laid out and how many there are, per queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Buffers {
    /// Bytes of a buffer for received frames, headroom not counted.
    pub(super) receive_bytes: u16,
    pub(super) receive_packets: u32,
    /// Headers (and inlined bytes) of frames to be sent have a pool of their own, of small
    /// buffers; else they share the one for received frames.
    pub(super) own_headers: bool,
    pub(super) header_packets: u32,
    /// Descriptors per queue.
    pub(super) descriptors: u16,
}

/// Bytes of a small buffer: frame header, packet header, update header, and room to spare for
/// short payloads.
pub(super) const SMALL_BYTES: u16 = 512;
/// Long buffers of a queue where others are small: what is copied and long is messages, and few.
pub(super) const LONG_PACKETS: u32 = 256;

/// Frames that one burst takes in or sends.
pub(super) const BURST: usize = 32;

impl Kind {
    /// Virtual devices are created with this driver and these arguments.
    pub(super) fn device(&self, mtu: u16, queues: u16) -> Option<(&'static str, String)> {
        match self {
            Self::Pci(_) | Self::Ring(_) => None,
            Self::Memif { socket, role, id } => {
                let role = match role {
                    MemifRole::Server => "server",
                    MemifRole::Client => "client",
                };
                let socket = socket.display();
                let bytes = memif_bytes(mtu);
                let slots = MEMIF_DESCRIPTORS.ilog2();
                let arguments = format!(
                    "role={role},id={id},socket={socket},socket-abstract=no,bsize={bytes},\
                     rsize={slots}"
                );
                Some(("net_memif", arguments))
            }
            Self::AfXdp { interface, steer } => {
                let mut arguments = format!("iface={interface},queue_count={queues}");
                if let Some(file) = steer {
                    arguments += &format!(",xdp_prog={}", file.display());
                }
                Some(("net_af_xdp", arguments))
            }
            Self::AfPacket(interface) => {
                let frame = packet_frame_bytes(mtu);
                // A block holds whole frames and is a multiple of a page.
                let block = frame.max(4096);
                let arguments = format!(
                    "iface={interface},qpairs={queues},blocksz={block},framesz={frame},\
                     framecnt=1024,qdisc_bypass=1"
                );
                Some(("net_af_packet", arguments))
            }
        }
    }

    /// The buffers of one queue.
    pub(super) fn buffers(&self, mtu: u16) -> Buffers {
        let frame = frame_bytes(mtu);
        match self {
            Self::Pci(_) => Buffers {
                receive_bytes: frame,
                receive_packets: 2048,
                own_headers: true,
                header_packets: 2048,
                descriptors: 1024,
            },
            // The driver copies a chain of buffers into one slot only when the first buffer is
            // larger than a slot; otherwise it spreads the chain over slots and leaves flags
            // behind that break later frames. Hence large buffers for headers too: few suffice,
            // because sending copies them at once.
            Self::Memif { .. } => Buffers {
                receive_bytes: memif_bytes(mtu) + 64,
                receive_packets: 512,
                own_headers: false,
                header_packets: 0,
                descriptors: MEMIF_DESCRIPTORS,
            },
            // The driver sends in place from the memory that it receives into, which must lie in
            // one page per buffer, and keeps 2048 buffers for receiving and as many for sending.
            Self::AfXdp { .. } => Buffers {
                receive_bytes: frame + 256,
                receive_packets: 2048 + 2048 + 512,
                own_headers: false,
                header_packets: 0,
                descriptors: 2048,
            },
            // The driver wants room for whatever its ring's frames could hold.
            Self::AfPacket(_) => Buffers {
                receive_bytes: packet_frame_bytes(mtu) as u16,
                receive_packets: 512,
                own_headers: true,
                header_packets: 512,
                descriptors: 512,
            },
            // What arrives are the sender's own buffers.
            Self::Ring(_) => Buffers {
                receive_bytes: SMALL_BYTES,
                receive_packets: u32::from(RING_DESCRIPTORS) + 1024,
                own_headers: false,
                header_packets: 0,
                descriptors: RING_DESCRIPTORS,
            },
        }
    }

    /// Whether a device of this kind carries an MTU whatever it says about itself.
    pub(super) const fn ignores_mtu(&self) -> bool {
        matches!(self, Self::Memif { .. } | Self::Ring(_) | Self::AfPacket(_))
    }
}

/// Slots of a memif ring: enough for a window of packets, and as little memory as that allows,
/// because all of it passes through the cache.
const MEMIF_DESCRIPTORS: u16 = 512;
/// Slots of a ring port.
pub(super) const RING_DESCRIPTORS: u16 = 1024;

/// Bytes of the longest frame with an 802.1Q tag, rounded up.
pub(super) const fn frame_bytes(mtu: u16) -> u16 {
    (mtu + 14 + 4).next_multiple_of(64)
}

/// A memif slot: one whole frame.
const fn memif_bytes(mtu: u16) -> u16 {
    frame_bytes(mtu).next_multiple_of(256)
}

/// A frame of AF_PACKET's ring: the kernel's header in front, a power of two so that blocks hold
/// whole numbers of them.
fn packet_frame_bytes(mtu: u16) -> u32 {
    const KERNEL_HEADER: u32 = 128;
    (u32::from(frame_bytes(mtu)) + KERNEL_HEADER).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_room_for_a_whole_frame() {
        let memif = Kind::Memif { socket: "/tmp/x".into(), role: MemifRole::Server, id: 0 };
        for mtu in [576, 1500, 3000, 9000, 9216] {
            for kind in
                [Kind::Pci("0000:00:01.0".into()), memif.clone(), Kind::AfPacket("eth0".into())]
            {
                let buffers = kind.buffers(mtu);
                assert!(buffers.receive_bytes >= mtu + 18, "{kind:?} {mtu}");
            }
            // The condition under which memif copies chains into one slot.
            assert!(memif.buffers(mtu).receive_bytes > memif_bytes(mtu));
            assert!(memif_bytes(mtu) >= mtu + 18);
            let (_, arguments) = memif.device(mtu, 1).unwrap();
            assert!(arguments.contains(&format!("bsize={}", memif_bytes(mtu))));
        }
    }
}
