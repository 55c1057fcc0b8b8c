//! `setline-check compare`.

use super::super::compare::{self, Difference, Holds, Pair};
use super::super::images::FileSource;
use super::table;
use super::{Exit, Failure, Output};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Arguments of `compare`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Images in pairs: A0 B0 A1 B1 …
    #[arg(required = true, num_args = 2.., value_name = "IMAGE")]
    images: Vec<PathBuf>,
    /// Size of a block
    #[arg(long, value_name = "SIZE", value_parser = super::args::bytes, default_value = "512")]
    block_size: u64,
}

#[derive(Debug, Serialize)]
struct Comparison {
    equal: bool,
    pairs: Vec<Pair>,
}

/// Compares pair by pair.
pub(super) fn run(args: &Args, output: Output) -> Result<Exit, Failure> {
    let (paths, []) = args.images.as_chunks::<2>() else {
        return Err(Failure::usage("compare: images come in pairs, the number given is odd"));
    };
    if !args.block_size.is_power_of_two() || !(512..=1 << 20).contains(&args.block_size) {
        return Err(Failure::usage("--block-size: a power of two from 512 to 1m is allowed"));
    }
    let open = |path: &Path| {
        FileSource::open(path)
            .map_err(|error| Failure::input(format!("{}: {error}", path.display())))
    };
    let mut pairs = Vec::new();
    for [a, b] in paths {
        let pair = compare::compare(&mut open(a)?, &mut open(b)?, args.block_size as u32);
        pairs.push(pair.map_err(Failure::input)?);
    }
    let result = Comparison { equal: pairs.iter().all(|pair| pair.equal), pairs };
    output.print(&result, text)?;
    Ok(if result.equal { Exit::Ok } else { Exit::No })
}

fn text(result: &Comparison) -> String {
    let mut rows = table::table(&["A", "B", "size", "differing blocks", "first"], &[2, 3]);
    for pair in &result.pairs {
        let size = match pair.a_bytes == pair.b_bytes {
            true => table::bytes(pair.a_bytes),
            false => format!("{} / {} B", pair.a_bytes, pair.b_bytes),
        };
        let first = pair.first_difference.as_ref().map_or(String::new(), first);
        let differing = table::count(pair.differing_blocks);
        rows.add_row([pair.a.clone(), pair.b.clone(), size, differing, first]);
    }
    format!("{rows}\n{}\n", if result.equal { "equal" } else { "DIFFERENT" })
}

fn first(difference: &Difference) -> String {
    let holds = |holds: &Option<Holds>| match holds {
        None => "no block of setline-check".to_owned(),
        Some(h) => format!("writer {} command {} version {}", h.writer, h.sequence, h.version),
    };
    format!(
        "block {} (byte {})\nA: {}\nB: {}",
        difference.address,
        difference.byte,
        holds(&difference.a),
        holds(&difference.b)
    )
}
