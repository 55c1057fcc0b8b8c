//! Values on the command line: byte sizes, mixes, volumes.

use super::super::workload::{SIZES_MAX, SizeClass};

/// Parses `512`, `4k`, `64KiB`, `1m`, `2g` into bytes.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = text[digits..].to_ascii_lowercase();
    let shift = match unit.as_str() {
        "" | "b" => 0,
        "k" | "ki" | "kib" => 10,
        "m" | "mi" | "mib" => 20,
        "g" | "gi" | "gib" => 30,
        "t" | "ti" | "tib" => 40,
        _ => return Err(format!("unknown unit '{unit}': k, m, g, t (of 1024) are allowed")),
    };
    let number: u64 = text[..digits].parse().map_err(|_| format!("'{text}' is no size"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("'{text}' is too large"))
}

/// One `SIZE` or `SIZE:WEIGHT` of a mix, size in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SizeWeight {
    pub(super) bytes: u64,
    pub(super) weight: u16,
}

/// Parses one element of a mix.
pub(super) fn size_weight(text: &str) -> Result<SizeWeight, String> {
    let (size, weight) = text.split_once(':').unwrap_or((text, "1"));
    let weight = weight.parse().ok().filter(|&weight| weight > 0);
    let weight = weight.ok_or_else(|| format!("'{text}': the weight is 1 to 65535"))?;
    Ok(SizeWeight { bytes: bytes(size)?, weight })
}

/// The mix that was asked for, in blocks; or one that suits the block size and the
/// longest command.
pub(super) fn mix(
    asked: &[SizeWeight],
    block_bytes: u32,
    blocks_max: u32,
) -> Result<Vec<SizeClass>, String> {
    let size = u64::from(block_bytes);
    let longest = u64::from(blocks_max.min(u16::MAX.into()));
    if asked.is_empty() {
        let usual = [(1, 2), (4096, 6), (3 * size, 1), (12288, 1), (65536, 2), (131_072, 1)];
        let mut sizes: Vec<SizeClass> = Vec::new();
        for (bytes, weight) in usual {
            let blocks = u64::max(bytes / size, 1).min(longest) as u16;
            match sizes.iter_mut().find(|class| class.blocks == blocks) {
                Some(class) => class.weight += weight,
                None => sizes.push(SizeClass { blocks, weight }),
            }
        }
        return Ok(sizes);
    }
    if asked.len() > SIZES_MAX {
        return Err(format!("--block-sizes: at most {SIZES_MAX} sizes"));
    }
    let class = |asked: &SizeWeight| {
        let blocks = asked.bytes / size;
        if !asked.bytes.is_multiple_of(size) || blocks == 0 || blocks > longest {
            return Err(format!(
                "--block-sizes: {} bytes: multiples of {size} up to {} are allowed here",
                asked.bytes,
                longest * size
            ));
        }
        Ok(SizeClass { blocks: blocks as u16, weight: asked.weight })
    };
    asked.iter().map(class).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_1024() {
        assert_eq!(bytes("512"), Ok(512));
        assert_eq!(bytes("4k"), Ok(4096));
        assert_eq!(bytes("2MiB"), Ok(2 << 20));
        assert!(bytes("4x").is_err() && bytes("k").is_err() && bytes("").is_err());
        assert!(bytes("99999999999t").is_err());
    }

    #[test]
    fn a_mix_is_in_blocks_and_refuses_what_the_volume_cannot_take() {
        let asked = [size_weight("512:3").unwrap(), size_weight("4k").unwrap()];
        let mixed = mix(&asked, 512, 256).unwrap();
        assert_eq!(mixed, [SizeClass { blocks: 1, weight: 3 }, SizeClass { blocks: 8, weight: 1 }]);
        assert!(mix(&asked, 4096, 256).is_err());
        assert!(mix(&asked, 512, 7).is_err());
        assert!(size_weight("4k:0").is_err());
    }

    #[test]
    fn the_usual_mix_suits_any_block_size() {
        for block_bytes in [512, 4096, 65536] {
            let sizes = mix(&[], block_bytes, 32).unwrap();
            assert!(sizes.iter().all(|s| s.blocks >= 1 && s.blocks <= 32), "{sizes:?}");
            assert!(sizes.len() <= SIZES_MAX);
        }
    }
}
