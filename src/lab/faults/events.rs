//! Random events in a row (`--events`): a soak of everything that hosts must not notice.

use std::time::Duration;

use super::{Fault, FaultError, Kind, NONE, Names, Random, STORES, survivable};
use crate::lab::options::{RunOptions, Transport};

/// Longest pause before an event, milliseconds.
const REST_MS_MAX: u64 = 1_500;
/// Longest time that a process stands still or is cut off, milliseconds.
const AWAY_MS_MAX: u64 = 3_000;
/// What is drawn, with how likely it is beside the others.
const KINDS: [(Kind, u64); 9] = [
    (Kind::KillPrimary, 6),
    (Kind::Drain, 3),
    (Kind::Move, 6),
    (Kind::KillSecondary, 2),
    (Kind::StopStore, 1),
    (Kind::Pause, 2),
    (Kind::Partition, 1),
    (Kind::Mute, 1),
    (Kind::Deafen, 1),
];

/// Draws `--events` of the kinds that the lab's shape allows.
///
/// # Errors
/// Hosts would notice any of them.
pub(super) fn draw(
    options: &RunOptions,
    draws: &mut Random,
    names: &Names,
) -> Result<Vec<Fault>, FaultError> {
    if options.events == 0 {
        return Ok(Vec::new());
    }
    for name in &names.primary {
        survivable(&options.shape, names, name, "--events", &[])?;
    }
    let tcp = options.shape.transport() == Transport::Tcp;
    let veth = options.shape.can_cut();
    let allowed = |kind| match kind {
        // Over vfio-user a host cannot tell a stopped mover from a slow one.
        Kind::Pause => tcp,
        Kind::Partition | Kind::Mute | Kind::Deafen => veth,
        _ => true,
    };
    let kinds: Vec<(Kind, u64)> = KINDS.into_iter().filter(|(kind, _)| allowed(*kind)).collect();
    let total: u64 = kinds.iter().map(|(_, weight)| weight).sum();
    let mut one = || {
        let mut at = draws.below(total);
        let drawn = kinds.iter().find(|(_, weight)| {
            let here = at < *weight;
            at = at.saturating_sub(*weight);
            here
        });
        let kind = drawn.map_or(Kind::Move, |(kind, _)| *kind);
        let who = match kind {
            Kind::KillSecondary if draws.below(3) == 0 => names.secondary.clone(),
            Kind::KillSecondary => vec![pick(&names.secondary, draws)],
            Kind::StopStore => vec![STORES[0].1.to_owned()],
            _ => vec![pick(&names.primary, draws)],
        };
        let length = match kind {
            Kind::Pause | Kind::StopStore | Kind::Partition | Kind::Mute | Kind::Deafen => {
                Duration::from_millis(200 + draws.below(AWAY_MS_MAX - 200))
            }
            _ => options.down,
        };
        let after = Duration::from_millis(draws.below(REST_MS_MAX));
        Fault { at: NONE, after, kind, who, length }
    };
    Ok((0..options.events).map(|_| one()).collect())
}

fn pick(names: &[String], draws: &mut Random) -> String {
    names[draws.below(names.len() as u64) as usize].clone()
}
