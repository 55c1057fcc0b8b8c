//! Messages as bytes: what was written reads back, and nothing else reads.

use super::*;
use proptest::prelude::*;

fn facts() -> impl Strategy<Value = FactsPart> {
    let fact = (any::<u32>(), 1..1_000_000_u64, 0..50_u64, any::<u64>(), any::<u64>());
    proptest::collection::vec(fact, 0..20).prop_map(|list| FactsPart {
        part: 0,
        parts: 1,
        facts: list
            .into_iter()
            .map(|(volume, first, more, bytes, digest)| VolumeFacts {
                volume: VolumeId(volume),
                first: Seq(first),
                last: Seq(first + more),
                bytes,
                digest,
                voids: (first..=first + more).filter(|s| s % 7 == 3).map(Seq).collect(),
            })
            .collect(),
    })
}

fn held() -> impl Strategy<Value = Vec<Held>> {
    let held = any::<(u32, u32, u32, u64, u32, bool)>();
    let held = held.prop_map(|(volume, copies, first, confirmed, set, keeps)| {
        let (first, last) = (Seq(u64::from(first) + 1), Seq(u64::from(first) + 9));
        Held {
            volume: VolumeId(volume),
            copies,
            confirmed: Seq(confirmed),
            heard: Seq(confirmed ^ 1),
            kept: keeps.then_some(Kept { set: SetId(set.into()), first, last }),
        }
    });
    proptest::collection::vec(held, 0..20)
}

fn message() -> impl Strategy<Value = Message> {
    let gs = (any::<u16>().prop_map(GroupId), any::<u64>().prop_map(SetId));
    prop_oneof![
        any::<u64>().prop_map(|bytes| Message::Budget { bytes }),
        (gs.clone(), any::<u32>()).prop_map(|((group, set), m)| Message::Prepare {
            group,
            set,
            map_version: MapVersion(m)
        }),
        gs.clone().prop_map(|(group, set)| Message::Prepared { group, set }),
        gs.clone().prop_map(|(group, set)| Message::Release { group, set }),
        (gs.clone(), facts()).prop_map(|((group, set), facts)| Message::Closed {
            group,
            set,
            facts
        }),
        (gs.clone(), any::<u64>(), facts()).prop_map(|((group, set), cut_time_ns, facts)| {
            Message::Manifest { group, set, cut_time_ns, facts }
        }),
        gs.clone().prop_map(|(group, set)| Message::Confirmed { group, set }),
        (gs.clone(), any::<bool>()).prop_map(|((group, set), needed)| Message::CloseNow {
            group,
            set,
            needed
        }),
        (gs.clone(), any::<u64>()).prop_map(|((group, set), n)| Message::Stored {
            group,
            set,
            not_before: SetId(n)
        }),
        gs.clone().prop_map(|(group, set)| Message::Apply { group, set }),
        gs.clone().prop_map(|(group, set)| Message::Applied { group, set }),
        (gs.clone(), any::<u64>()).prop_map(|((group, stored), a)| Message::Resume {
            group,
            stored,
            applied: SetId(a),
            not_before: SetId(a / 2)
        }),
        any::<u16>().prop_map(|g| Message::Broken {
            group: GroupId(g),
            reason: BrokenReason::BaseWriteFailed
        }),
        (any::<u16>(), any::<bool>())
            .prop_map(|(g, paused)| Message::PauseApply { group: GroupId(g), paused }),
        any::<bool>().prop_map(|scarce| Message::JournalRoom { scarce }),
        (any::<u64>(), any::<u8>(), any::<u8>()).prop_map(|(f, sct, sc)| {
            Message::Forwarded { forward: ForwardId(f), status: NvmeStatus { sct, sc } }
        }),
        (any::<u64>(), any::<u16>(), any::<u8>(), any::<u32>()).prop_map(|(f, m, p, v)| {
            Message::NotResponsible {
                forward: ForwardId(f),
                owner: ShardId::new(m, p),
                map_version: MapVersion(v),
            }
        }),
        any::<bool>().prop_map(|drained| Message::Stopping { drained }),
        (any::<u64>(), any::<u32>(), any::<u64>(), any::<u32>(), any::<bool>()).prop_map(
            |(ask, volume, lba, blocks, read)| Message::Ask {
                ask: AskId(ask),
                kind: if read { AskKind::Read } else { AskKind::Flush },
                volume: VolumeId(volume),
                extent: Extent { lba, blocks },
            }
        ),
        Just(Message::Lead),
        (gs.clone(), any::<u64>(), held()).prop_map(|((group, confirmed), open, volumes)| {
            Message::Survey { group, confirmed, open: SetId(open), part: 1, parts: 3, volumes }
        }),
        held().prop_map(|volumes| Message::Marks { volumes }),
        (gs.clone(), any::<u64>(), any::<u32>()).prop_map(|((group, confirmed), open, map)| {
            let map_version = MapVersion(map);
            Message::Greet { group, confirmed, open: SetId(open), map_version }
        }),
        any::<u32>().prop_map(|map| Message::Planned { map_version: MapVersion(map) }),
        (gs.clone(), any::<(u32, u32, u64, u64)>(), proptest::collection::vec(gs, 0..20)).prop_map(
            |((group, _), (map, volume, next, confirmed), lasts)| Message::HandOff {
                group,
                map_version: MapVersion(map),
                volume: VolumeId(volume),
                next: Seq(next),
                lost_from: Seq(next / 2),
                confirmed: Seq(confirmed),
                lasts: lasts.into_iter().map(|(g, set)| (set, Seq(g.0.into()))).collect(),
            }
        ),
        any::<(u16, u32)>().prop_map(|(group, map)| Message::Settled {
            group: GroupId(group),
            map_version: MapVersion(map),
        }),
        any::<(u64, u64)>().prop_map(|(asked, latest_ns)| Message::TimeAsk { asked, latest_ns }),
        any::<(u64, u64, bool)>().prop_map(|(asked, time_ns, firm)| Message::TimeAnswer {
            asked,
            time_ns,
            firm
        }),
        (any::<u64>(), any::<u8>(), any::<u8>()).prop_map(|(ask, sct, sc)| {
            Message::Answered { ask: AskId(ask), status: NvmeStatus { sct, sc } }
        }),
    ]
}

proptest! {
    #[test]
    fn a_message_reads_back_as_it_was(message in message(), epoch in any::<u32>()) {
        let mut bytes = Vec::new();
        encode(Epoch(epoch), &message, &mut bytes);
        prop_assert_eq!(decode(&bytes), Ok((Epoch(epoch), message)));
    }

    #[test]
    fn every_truncation_and_extension_is_refused(message in message()) {
        let mut bytes = Vec::new();
        encode(Epoch(1), &message, &mut bytes);
        for len in 0..bytes.len() {
            prop_assert!(decode(&bytes[..len]).is_err());
        }
        bytes.push(0);
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
    }
}

#[test]
fn golden_bytes_of_prepare() {
    let mut bytes = Vec::new();
    let message = Message::Prepare { group: GroupId(2), set: SetId(3), map_version: MapVersion(4) };
    encode(Epoch(1), &message, &mut bytes);
    assert_eq!(bytes, b"\x02\x01\0\0\x01\0\0\0\x02\0\x03\0\0\0\0\0\0\0\x04\0\0\0");
}

#[test]
fn golden_bytes_of_time_ask_and_answer() {
    let mut bytes = Vec::new();
    encode(Epoch(1), &Message::TimeAsk { asked: 5, latest_ns: 6 }, &mut bytes);
    assert_eq!(bytes, b"\x1b\x01\0\0\x01\0\0\0\x05\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0");
    bytes.clear();
    encode(Epoch(1), &Message::TimeAnswer { asked: 5, time_ns: 7, firm: true }, &mut bytes);
    assert_eq!(bytes, b"\x1c\x01\0\0\x01\0\0\0\x05\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x01");
}

#[test]
fn golden_bytes_of_ask_and_answered() {
    let mut bytes = Vec::new();
    let message = Message::Ask {
        ask: AskId(5),
        kind: AskKind::Read,
        volume: VolumeId(7),
        extent: Extent { lba: 9, blocks: 11 },
    };
    encode(Epoch(1), &message, &mut bytes);
    assert_eq!(
        bytes,
        b"\x28\x01\0\0\x01\0\0\0\x05\0\0\0\0\0\0\0\x07\0\0\0\x09\0\0\0\0\0\0\0\x0b\0\0\0\x01"
    );
    bytes.clear();
    let status = NvmeStatus { sct: 3, sc: 2 };
    encode(Epoch(1), &Message::Answered { ask: AskId(5), status }, &mut bytes);
    assert_eq!(bytes, b"\x29\x01\0\0\x01\0\0\0\x05\0\0\0\0\0\0\0\x03\x02");
}
