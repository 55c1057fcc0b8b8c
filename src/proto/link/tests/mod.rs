//! The link against a network that loses, duplicates, reorders, delays and partitions, with
//! restarts of either end. The harness checks after every packet that nothing arrives twice or
//! from another session, and that whatever counts as delivered has been stored.

mod pair;

use super::*;
use crate::wire::packet::{PACKET_HEADER_BYTES, PacketHeader};
use pair::{Faults, Pair, Random};
use std::vec;
use zerocopy::IntoBytes;

impl Link {
    /// What must hold between any two calls.
    fn check(&self) {
        self.control_out.check();
        self.control_in.check();
        self.data_out.check();
        self.data_in.check();
        let free = self.config.message_store_bytes as usize;
        assert!(self.bitmap.capacity() <= free && self.bitmap.len() <= 4096);
    }
}

const MS: u64 = 1_000_000;

fn pair(seed: u64) -> Pair {
    let mut pair = Pair::new(Pair::small(), seed);
    pair.connect();
    pair
}

#[test]
fn two_links_meet_and_report_it_once() {
    let mut pair = pair(1);
    pair.run(10 * MS);
    for node in &pair.nodes {
        let ups = node.events.iter().filter(|e| matches!(e, Event::Up { .. })).count();
        assert_eq!((ups, node.events.len()), (1, 1), "{:?}", node.events);
    }
}

#[test]
fn nothing_is_taken_before_the_peer_is_met() {
    let mut pair = Pair::new(Pair::small(), 1);
    assert_eq!(pair.nodes[0].link.send_message(b"early"), Err(SendError::Down));
    let sent = pair.nodes[0].link.send_record(RecordRole::Mirror, BufRef(1), 128, Token(1));
    assert_eq!(sent, Err(SendError::Down));
}

#[test]
fn messages_and_records_of_every_length_arrive() {
    let mut pair = pair(2);
    pair.faults.delay_max = 0;
    for len in [1, 100, 255, 256, 257, 511, 512, 513, 5_000, 65_536] {
        assert!(pair.send_message(0, len));
        assert!(pair.send_record(0, len));
        pair.settle(1_000 * MS);
    }
    assert!(pair.send_record(1, 128 + (1 << 20)));
    pair.settle(1_000 * MS);
    assert!(pair.all_arrived(0) && pair.all_arrived(1));
    let sent = pair.nodes[0].link.counters();
    assert_eq!((sent.retransmitted, sent.records_delivered), (0, 10));
}

#[test]
fn one_acknowledgement_answers_a_burst() {
    let mut pair = pair(3);
    pair.run(5 * MS);
    pair.faults.delay_max = 0;
    let before = pair.nodes[1].link.counters().bare_sent;
    for _ in 0..60 {
        assert!(pair.send_record(0, 200));
    }
    pair.settle(10 * MS);
    let bare = pair.nodes[1].link.counters().bare_sent - before;
    assert!(bare <= 2, "{bare} acknowledgements for one burst");
}

#[test]
fn a_full_queue_is_a_value_and_takes_again_after_delivery() {
    let mut pair = pair(4);
    pair.faults.cut = true;
    let mut taken = 0;
    while pair.send_record(0, 128) {
        taken += 1;
    }
    assert_eq!(taken, pair.config.records_max);
    assert_eq!(pair.nodes[0].link.records_room(), 0);
    while pair.send_message(0, 30_000) {}
    pair.faults.cut = false;
    pair.settle(1_000 * MS);
    assert_eq!(pair.nodes[0].link.records_room(), pair.config.records_max);
    assert!(pair.send_record(0, 128) && pair.send_message(0, 60_000));
    pair.settle(1_000 * MS);
    assert!(pair.all_arrived(0));
}

#[test]
fn a_single_lost_packet_is_sent_again_alone_and_long_before_the_timeout() {
    let mut pair =
        Pair::new(LinkConfig { rto_min_ns: 10 * MS, heartbeat_ns: MS, ..Pair::small() }, 5);
    pair.connect();
    pair.faults.delay_max = 0;
    for _ in 0..20 {
        pair.send_record(0, 128);
        pair.settle(10 * MS);
    }
    let start = pair.now;
    pair.faults.cut = true;
    pair.send_record(0, 128);
    pair.run(100);
    pair.faults.cut = false;
    for _ in 0..10 {
        pair.send_record(0, 128);
    }
    pair.settle(100 * MS);
    assert_eq!(pair.nodes[0].link.counters().retransmitted, 1);
    assert!(pair.now.since(start) < MS, "{} ns", pair.now.since(start));
}

#[test]
fn a_peer_that_slept_gets_one_packet_twice_not_a_window_full() {
    let mut pair = pair(6);
    pair.faults.delay_max = 0;
    for _ in 0..20 {
        pair.send_record(0, 128);
        pair.settle(10 * MS);
    }
    // Every packet takes 5 ms all of a sudden: far beyond the timeout.
    pair.faults.delay_max = 0;
    for _ in 0..50 {
        pair.send_record(0, 128);
    }
    pair.sleep(1, 1_500_000);
    pair.settle(100 * MS);
    let again = pair.nodes[0].link.counters().retransmitted;
    assert!(again <= 4, "{again} of 50 packets were sent again");
}

#[test]
fn closed_credit_stops_the_sender_and_reopening_is_found_out() {
    let mut pair = pair(7);
    pair.run(5 * MS);
    pair.nodes[1].link.set_credit(0);
    pair.send_record(1, 128);
    pair.settle(100 * MS);
    for _ in 0..30 {
        assert!(pair.send_record(0, 128));
    }
    pair.run(50 * MS);
    assert_eq!(pair.nodes[0].link.queued().0, 30);
    assert!(pair.nodes[1].got.is_empty());
    // Even when the news of the opening is lost.
    pair.faults.cut = true;
    pair.nodes[1].link.set_credit(64);
    pair.run(MS);
    pair.faults.cut = false;
    pair.settle(100 * MS);
    assert!(pair.all_arrived(0));
}

#[test]
fn records_that_find_no_room_are_sent_again_until_they_do() {
    let mut pair = pair(8);
    pair.faults.no_room = 60;
    for len in (0..40).map(|i| 128 + i * 50) {
        assert!(pair.send_record(0, len));
    }
    pair.settle(2_000 * MS);
    assert!(pair.all_arrived(0));
    assert!(pair.nodes[1].link.counters().not_stored > 0);
}

#[test]
fn a_record_that_is_here_in_part_does_not_wait_for_one_that_finds_no_room() {
    for seed in 0..20 {
        let mut pair = pair(seed);
        (pair.faults.partial_max, pair.faults.lose) = (1, 20);
        // Of each window's records one would begin inside and end outside.
        for len in (0..20).map(|i| 2000 + i * 37) {
            assert!(pair.send_record(0, len));
        }
        pair.settle(5_000 * MS);
        assert!(pair.all_arrived(0), "seed {seed}");
    }
}

#[test]
fn a_record_larger_than_the_window_goes_alone() {
    let mut pair = pair(3);
    for len in [500, 64 * 256 * 2, 500, 64 * 256 + 1] {
        assert!(pair.send_record(0, len));
    }
    pair.settle(100 * MS);
    assert!(pair.all_arrived(0));
}

#[test]
fn a_silent_peer_is_reported_and_so_is_its_return() {
    let mut pair = pair(9);
    pair.faults.cut = true;
    pair.run(50 * MS);
    pair.faults.cut = false;
    pair.run(50 * MS);
    for node in &pair.nodes {
        assert_eq!(node.events[1..], [Event::Silent, Event::Heard]);
    }
}

#[test]
fn a_path_that_is_broken_one_way_is_broken_at_both_ends() {
    for deaf in 0..2 {
        let mut pair = pair(9);
        pair.faults.deaf = Some(deaf);
        pair.run(25 * MS);
        assert_eq!(pair.nodes[deaf].events[1..], [Event::Silent]);
        assert!(!pair.nodes[1 - deaf].link.is_silent(), "it might just have stood still");
        pair.run(15 * MS);
        assert_eq!(
            pair.nodes[1 - deaf].events[1..],
            [Event::Silent],
            "it hears that it is not heard"
        );
        pair.faults.deaf = None;
        pair.run(20 * MS);
        for node in &pair.nodes {
            assert_eq!(node.events[1..], [Event::Silent, Event::Heard]);
        }
    }
}

#[test]
fn what_was_queued_for_a_restarted_peer_is_dropped_and_reported() {
    let mut pair = pair(10);
    pair.faults.cut = true;
    for _ in 0..10 {
        assert!(pair.send_record(0, 700) && pair.send_message(0, 700));
    }
    pair.run(MS);
    pair.restart(1);
    pair.faults.cut = false;
    pair.connect();
    let events = &pair.nodes[0].events;
    assert!(events.contains(&Event::Reset));
    assert_eq!(events.iter().filter(|e| matches!(e, Event::Dropped { .. })).count(), 10);
    assert!(pair.nodes[1].got.is_empty());
    assert!(pair.send_record(0, 700));
    pair.settle(100 * MS);
    assert!(pair.all_arrived(0));
}

#[test]
fn packets_of_another_epoch_are_refused_and_counted() {
    let mut pair = pair(11);
    pair.nodes[1].link.set_epoch(Epoch(2), PeerEpoch::Exactly(Epoch(2)));
    pair.send_record(0, 128);
    pair.run(10 * MS);
    assert!(pair.nodes[1].got.is_empty());
    assert!(pair.nodes[1].link.counters().epoch_old > 0);
    assert!(pair.nodes[0].link.counters().epoch_new > 0);
    pair.nodes[0].link.set_epoch(Epoch(2), PeerEpoch::AtLeast(Epoch(1)));
    pair.settle(100 * MS);
    assert!(pair.all_arrived(0));
    // The other site went on; its former epoch does not come back.
    pair.nodes[1].link.set_epoch(Epoch(1), PeerEpoch::Exactly(Epoch(2)));
    pair.send_record(1, 128);
    pair.run(10 * MS);
    assert!(pair.nodes[0].link.counters().epoch_old > 0);
    assert!(pair.nodes[0].got.is_empty());
}

#[test]
fn a_packet_of_a_former_incarnation_is_refused() {
    let mut pair = pair(12);
    let mut out = Transmit::default();
    pair.nodes[0].link.send_message(b"of a life that is over").unwrap();
    assert!(pair.nodes[0].link.poll_transmit(pair.now, &mut out));
    let mut old = PacketHeader::seal(&out.packet).as_bytes().to_vec();
    old.extend_from_slice(pair.nodes[0].link.inline_bytes(&out.body));
    pair.restart(0);
    pair.connect();
    let info = PacketHeader::check(&old).unwrap();
    let link = &mut pair.nodes[1].link;
    let verdict = link.handle_packet(pair.now, &info, &old[PACKET_HEADER_BYTES..]);
    assert_eq!(verdict, Verdict::Refused(Refusal::SenderOld));
    assert_eq!(link.counters().sender_old, 1);
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_is_refused() {
    let mut pair = pair(13);
    let mut out = Transmit::default();
    pair.nodes[0].link.send_message(b"x").unwrap();
    assert!(pair.nodes[0].link.poll_transmit(pair.now, &mut out));
    out.packet.acked += 1000;
    let payload = pair.nodes[0].link.inline_bytes(&out.body).to_vec();
    let verdict = pair.nodes[1].link.handle_packet(pair.now, &out.packet, &payload);
    assert_eq!(verdict, Verdict::Refused(Refusal::Malformed));
}

/// Random traffic under random faults with random restarts; then the network heals, and
/// everything that was queued has to arrive.
fn history(seed: u64) {
    let mut config = Pair::small();
    let mut choice = Random(seed.wrapping_mul(0xd134_2543_de82_ef95) | 1);
    if choice.chance(50) {
        config.data_window = 256;
        config.assemblies_max = 64;
    }
    let mut pair = Pair::new(config, seed);
    for _ in 0..choice.below(20) + 5 {
        pair.faults = Faults {
            lose: [0, 1, 10, 40][choice.below(4) as usize],
            duplicate: [0, 5, 50][choice.below(3) as usize],
            corrupt: [0, 0, 5][choice.below(3) as usize],
            delay_max: [0, 10_000, 300_000, 3_000_000][choice.below(4) as usize],
            cut: choice.chance(10),
            deaf: choice.chance(10).then_some(0),
            partial_max: 0,
            no_room: [0, 0, 20][choice.below(3) as usize],
        };
        for _ in 0..choice.below(60) {
            let side = choice.below(2) as usize;
            let len_max = if choice.chance(10) { 20_000 } else { 600 };
            let len = choice.below(len_max) as usize;
            if choice.chance(70) {
                pair.send_record(side, len);
            } else {
                pair.send_message(side, len);
            }
            if choice.chance(30) {
                pair.run(choice.below(200_000));
            }
        }
        if choice.chance(15) {
            pair.restart(choice.below(2) as usize);
        }
        if choice.chance(10) {
            let credit = choice.below(65) as u32;
            pair.nodes[choice.below(2) as usize].link.set_credit(credit);
        }
        pair.run(choice.below(2 * MS));
    }
    pair.faults = Faults { delay_max: 20_000, ..Faults::default() };
    for node in &mut pair.nodes {
        node.link.set_credit(1024);
    }
    pair.connect();
    pair.settle(5_000 * MS);
    for side in 0..2 {
        for _ in 0..50 {
            pair.send_record(side, 600);
            pair.send_message(side, 600);
        }
    }
    pair.settle(1_000 * MS);
    assert!(pair.all_arrived(0) && pair.all_arrived(1), "seed {seed}");
}

#[test]
fn random_histories_deliver_everything_once_and_nothing_of_a_former_life() {
    for seed in 1..=150 {
        history(seed);
    }
}

#[test]
fn numbers_wrap_around() {
    for near in [0_u64, 5, 1 << 31, (1 << 32) - 1, 1 << 32, (7 << 32) + 12] {
        for off in [-2_i64, -1, 0, 1, 2, 1_000_000] {
            let want = near.saturating_add_signed(off);
            if near as i64 + off >= 0 {
                assert_eq!(send::expand(want as u32, near), want);
            }
        }
    }
}

#[test]
fn every_contradiction_of_the_configuration_has_its_words() {
    assert_eq!(LinkConfig::default().fault(), None);
    let cases = vec![
        LinkConfig { data_window: 100, ..LinkConfig::default() },
        LinkConfig { control_window: 32, ..LinkConfig::default() },
        LinkConfig { data_window: 65_536, ..LinkConfig::default() },
        LinkConfig { records_max: 3, ..LinkConfig::default() },
        LinkConfig { payload_bytes_max: 10, ..LinkConfig::default() },
        LinkConfig { message_store_bytes: 1000, ..LinkConfig::default() },
        LinkConfig { rto_min_ns: 0, ..LinkConfig::default() },
        LinkConfig { heartbeat_ns: u64::MAX, ..LinkConfig::default() },
    ];
    for case in cases {
        assert!(case.fault().is_some(), "{case:?}");
    }
}
