//! The reader against a slow, obvious oracle: of a small history every closed set of
//! commands is tried, and images are consistent if and only if one of them yields
//! exactly these.

#![allow(clippy::unwrap_used, reason = "a failed helper is a failed test")]
mod check_support;

use check_support::{Contents, History, options};
use proptest::prelude::*;
use setline::check::workload::SizeClass;

#[derive(Debug, Clone)]
struct Shape {
    seed: u64,
    writers: u16,
    depth: u16,
    slowness: u64,
    writes: u64,
    drain: bool,
}

fn shapes() -> impl Strategy<Value = Shape> {
    (any::<u64>(), 1u16..4, 1u16..4, 1u64..6, 1u64..11, any::<bool>()).prop_map(
        |(seed, writers, depth, slowness, writes, drain)| Shape {
            seed,
            writers,
            depth,
            slowness,
            writes,
            drain,
        },
    )
}

fn small(shape: &Shape) -> History {
    let mut options = options(shape.seed);
    options.queue_depth = shape.depth;
    options.reads_permille = 500;
    options.workload.writers = shape.writers;
    options.workload.volumes = 2;
    options.workload.stripe_blocks = 4;
    options.workload.span_blocks = 4 * u64::from(shape.writers);
    options.workload.sizes = vec![
        SizeClass { blocks: 1, weight: 2 },
        SizeClass { blocks: 2, weight: 1 },
        SizeClass { blocks: 3, weight: 1 },
    ];
    History::run(options, shape.writes, shape.drain, |ram| ram.slowness = shape.slowness)
}

/// Whether some closed set of commands yields exactly `contents`.
fn oracle(history: &History, contents: &Contents) -> bool {
    let commands = history.commands();
    assert!(commands.len() <= 20);
    (0u32..1 << commands.len()).any(|bits| {
        let chosen = |index: usize| bits >> index & 1 == 1;
        let closed = (0..commands.len()).filter(|&b| chosen(b)).all(|b| {
            (0..commands.len())
                .all(|a| chosen(a) || history.known(commands[a]) >= history.issued(commands[b]))
        });
        closed && {
            let cut: Vec<_> =
                (0..commands.len()).filter(|&c| chosen(c)).map(|c| commands[c]).collect();
            history.apply(&cut) == *contents
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, ..ProptestConfig::default() })]

    #[test]
    fn any_closed_cut_of_any_history_is_accepted(
        shape in shapes(),
        at in 0u64..1000,
        in_flight in prop::collection::vec(any::<bool>(), 32),
    ) {
        let history = small(&shape);
        let mut picks = in_flight.into_iter();
        let event = history.log.events * at / 999 + 1;
        let cut = history.cut(event, || picks.next().unwrap_or(false));
        let contents = history.apply(&cut);
        prop_assert!(oracle(&history, &contents));
        let (with, without) = history.judge(&history.render(&contents), None);
        prop_assert!(with.consistent, "{:?}", with.faults);
        prop_assert!(without.consistent, "{:?}", without.faults);
    }

    #[test]
    fn after_any_mutation_the_verdict_is_the_oracles(
        shape in shapes(),
        at in 0u64..1000,
        in_flight in any::<bool>(),
        mutations in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..4),
    ) {
        let history = small(&shape);
        let event = history.log.events * at / 999 + 1;
        let mut contents = history.apply(&history.cut(event, || in_flight));
        let commands = history.commands();
        for (block, content) in mutations {
            // Any block that is ever written, any content that it ever may have.
            let written: Vec<(u16, u64)> = commands
                .iter()
                .flat_map(|&c| {
                    let extent = history.extent(c);
                    extent.addresses().map(move |address| (extent.volume, address))
                })
                .collect();
            let (volume, address) = *block.get(&written);
            let mut choices = vec![None];
            choices.extend(commands.iter().filter(|&&c| {
                let extent = history.extent(c);
                extent.volume == volume && extent.addresses().contains(&address)
            }).map(|&c| Some(c)));
            contents.0[usize::from(volume)][address as usize] = *content.get(&choices);
        }
        let (with, without) = history.judge(&history.render(&contents), None);
        let truth = oracle(&history, &contents);
        prop_assert_eq!(with.consistent, truth, "with the log: {:?}", with.faults);
        prop_assert_eq!(without.consistent, truth, "images alone: {:?}", without.faults);
    }

    #[test]
    fn any_choice_of_whole_commands_is_judged_as_the_oracle_does(
        shape in shapes(),
        chosen in prop::collection::vec(any::<bool>(), 32),
        swap in any::<bool>(),
    ) {
        let history = small(&shape);
        let mut applied: Vec<_> = history
            .commands()
            .into_iter()
            .zip(chosen)
            .filter_map(|(command, chosen)| chosen.then_some(command))
            .collect();
        if swap && applied.len() > 1 {
            let last = applied.len() - 1;
            applied.swap(0, last);
        }
        let contents = history.apply(&applied);
        let (with, without) = history.judge(&history.render(&contents), None);
        let truth = oracle(&history, &contents);
        prop_assert_eq!(with.consistent, truth, "with the log: {:?}", with.faults);
        prop_assert_eq!(without.consistent, truth, "images alone: {:?}", without.faults);
    }
}
