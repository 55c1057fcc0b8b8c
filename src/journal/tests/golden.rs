//! The bytes of version 2. When one of these changes, the version does too.

use super::*;
use crate::mem::Copier;

fn hex(bytes: &[u8]) -> String {
    let lines = bytes
        .chunks(16)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_superblock_has_these_bytes() {
    let mut groups = superblock::Groups::new();
    let (group, set, primary_epoch) = (GroupId(5), SetId(0x21), PRIMARY_EPOCH);
    groups.note(&Entry::Commit { group, set, cut_time_ns: 0x4444, primary_epoch });
    groups.note(&Entry::Applied { group: GroupId(5), set: SetId(0x20) });
    let superblock = superblock::Superblock {
        identity: IDENTITY,
        shape: Shape::LARGE,
        device_blocks: 0x10_0002,
        counter: 9,
        tail: 0x1111,
        generation: 3,
        generation_start: 0x2222,
        floor: 0x3333,
        groups,
    };
    let mut block = vec![0xEE; BLOCK_BYTES];
    superblock.write(&mut block, Copier::detect());
    let golden = "\
53 4c 4a 4f 55 52 4e 4c 02 03 07 00 c9 af 5c b9
30 31 32 33 34 35 36 37 38 39 61 62 63 64 65 66
09 00 00 00 00 00 00 00 02 00 10 00 00 00 00 00
00 01 00 00 04 00 01 00 11 11 00 00 00 00 00 00
03 00 00 00 00 00 00 00 22 22 00 00 00 00 00 00
33 33 00 00 00 00 00 00 00 00 00 00 00 00 00 00
00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
05 00 00 00 00 00 00 00 20 00 00 00 00 00 00 00
21 00 00 00 00 00 00 00 44 44 00 00 00 00 00 00";
    assert_eq!(hex(&block[..160]), golden);
    assert!(block[160..].iter().all(|byte| *byte == 0));
    assert_eq!(superblock::Superblock::read(&block, Copier::detect()), Some(superblock));
}

#[test]
fn a_unit_with_a_record_and_a_mark_has_these_bytes() {
    let mut rig = Rig::format(config(0));
    rig.append(&Owned::record(0x0102_0304, 6, 512)).unwrap();
    rig.append(&Owned::Commit { set: 6, cut_time_ns: 0x5555 }).unwrap();
    rig.settle();
    let unit = rig.disk.read(2 * BLOCK_BYTES as u64, 2 * BLOCK_BYTES);
    let golden = "\
53 4c 4a 55 02 01 01 00 0f 23 d6 92 02 00 00 00
00 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00
02 00 00 00 00 01 00 00 30 31 32 33 34 35 36 37
38 39 61 62 63 64 65 66 00 00 00 00 00 00 00 00
01 02 05 00 0b 19 e9 16 06 00 00 00 00 00 00 00
00 10 00 00 00 02 00 00 00 00 00 00 00 00 00 00
04 03 02 01 00 00 00 00 00 00 00 00 00 00 00 00";
    assert_eq!(hex(&unit[..112]), golden, "unit header, entry header, start of the update header");
    let golden = "\
03 00 05 00 78 56 34 12 06 00 00 00 00 00 00 00
01 10 00 00 00 00 00 00 55 55 00 00 00 00 00 00";
    assert_eq!(hex(&unit[224..256]), golden, "the second entry's header");
    let Owned::Record { payload, .. } = Owned::record(0x0102_0304, 6, 512) else { unreachable!() };
    assert_eq!(unit[BLOCK_BYTES..][..512], payload);
    assert!(unit[BLOCK_BYTES + 512..].iter().all(|byte| *byte == 0), "padding is zero");
}
