//! What the link costs by itself: nanoseconds per record for sending and for receiving, without
//! a network, a copy or a checksum of payload. `cargo run --release --example link_cost`.
#![allow(clippy::print_stdout)]

use setline::proto::command::{RecordRole, Token};
use setline::proto::link::{Link, LinkConfig, Transmit, Verdict};
use setline::proto::types::{BufRef, Nanos, ShardId};
use setline::wire::packet::{Incarnation, PACKET_HEADER_BYTES, PacketHeader};
use std::time::{Duration, Instant};
use zerocopy::IntoBytes;

const BURST: usize = 32;
const ROUNDS: usize = 200_000;

struct End {
    link: Link,
    out: Transmit,
    packets: Vec<[u8; PACKET_HEADER_BYTES]>,
}

impl End {
    fn new(local: u16, peer: u16) -> Self {
        let incarnation = Incarnation::new(1).expect("not 0");
        let shard = |mover| ShardId::new(mover, 0);
        let config = LinkConfig::default();
        let link = Link::new(config, shard(local), shard(peer), incarnation, Nanos(0));
        Self { link, out: Transmit::default(), packets: Vec::with_capacity(2 * BURST) }
    }

    fn transmit(&mut self, now: Nanos) {
        while self.link.poll_transmit(now, &mut self.out) || self.link.poll_bare(now, &mut self.out)
        {
            let header = PacketHeader::seal(&self.out.packet);
            let mut bytes = [0; PACKET_HEADER_BYTES];
            bytes.copy_from_slice(header.as_bytes());
            self.packets.push(bytes);
        }
    }

    /// Takes headers in whose payload is somewhere else.
    fn receive(&mut self, now: Nanos, headers: &[[u8; PACKET_HEADER_BYTES]], payload: &[u8]) {
        let mut packet = [0; PACKET_HEADER_BYTES + 4224];
        for header in headers {
            packet[..PACKET_HEADER_BYTES].copy_from_slice(header);
            let info = PacketHeader::check(&packet).expect("sealed above");
            loop {
                match self.link.handle_packet(now, &info, payload) {
                    Verdict::NewSession => while self.link.poll_event().is_some() {},
                    Verdict::Store(store) => {
                        self.link.record_stored(&store, BufRef(0));
                        break;
                    }
                    _ => break,
                }
            }
        }
    }
}

fn main() {
    let (mut a, mut b) = (End::new(1, 2), End::new(2, 1));
    let payload = [0; 4224];
    let mut now = Nanos(1);
    let [mut sending, mut receiving, mut acknowledged] = [Duration::ZERO; 3];
    let mut records = 0_u64;
    for round in 0..ROUNDS {
        now = now.after(10_000);
        let start = Instant::now();
        a.link.handle_timeout(now);
        if a.link.is_up() {
            for i in 0..BURST {
                let token = Token((round * BURST + i) as u64);
                a.link
                    .send_record(RecordRole::Mirror, BufRef(token.0), 4224, token)
                    .expect("everything was acknowledged");
                records += 1;
            }
        }
        a.transmit(now);
        let sent = Instant::now();
        b.receive(now, &a.packets, &payload);
        b.link.handle_timeout(now);
        b.transmit(now);
        let received = Instant::now();
        a.receive(now, &b.packets, &[]);
        while a.link.poll_delivered().is_some() {}
        sending += sent - start;
        receiving += received - sent;
        acknowledged += received.elapsed();
        a.packets.clear();
        b.packets.clear();
    }
    let per = |time: Duration| time.as_nanos() as f64 / records as f64;
    println!("{records} records of 4 KiB in bursts of {BURST}, headers sealed and checked");
    println!("send and seal      {:6.1} ns per record", per(sending));
    println!("check and receive  {:6.1} ns per record", per(receiving));
    println!("acknowledgement    {:6.1} ns per record", per(acknowledged));
    assert_eq!(a.link.counters().records_delivered, records);
}
