//! The engine of a group that can form no sets any more (invariant 10).

use super::*;

#[test]
fn a_secondary_that_has_sets_which_would_be_formed_anew_stops_the_group() {
    let broken = Message::Broken { group: G, reason: BrokenReason::MoverRestarted };
    let told = [P1, P2, S1].map(|to| (to, broken.clone()));
    let claim = Message::Confirmed { group: G, set: SetId(9) };
    let mut engine = running();
    engine.handle_message(Nanos(9), S1, E, claim.clone());
    assert_eq!(orders(&mut engine), told);
    // The claim may come before the shards have greeted.
    let mut engine = self::engine();
    greet(&mut engine, P1, 0);
    engine.handle_message(Nanos(9), S1, E, claim.clone());
    greet(&mut engine, P2, 0);
    assert_eq!(orders(&mut engine), told);
    // But a shard that went on while the coordinator was away has the later numbers.
    let mut engine = self::engine();
    engine.handle_message(Nanos(9), S1, E, claim);
    greet(&mut engine, P1, 10);
    greet(&mut engine, P2, 0);
    let prepare = |m: &(ShardId, Message)| matches!(m.1, Message::Prepare { set: SetId(10), .. });
    assert_eq!(orders(&mut engine).iter().filter(|m| prepare(m)).count(), 1);
    prepared(&mut engine, P2, 10);
    assert_eq!(orders(&mut engine).iter().filter(|m| prepare(m)).count(), 1);
}

#[test]
fn a_broken_word_stops_the_group_everywhere() {
    let mut engine = running();
    let broken = Message::Broken { group: G, reason: BrokenReason::MoverRestarted };
    engine.handle_message(Nanos(9), P2, E, broken.clone());
    let told = [P1, P2, S1].map(|to| (to, broken.clone()));
    assert_eq!(orders(&mut engine), told);
    assert_eq!(engine.next_timeout(), Nanos::NEVER);
    engine.handle_peer_up(S1);
    engine.handle_peer_up(P2);
    let lead = (S1, Message::Lead);
    assert_eq!(orders(&mut engine), [lead, (S1, broken.clone()), (P2, broken)]);
}
