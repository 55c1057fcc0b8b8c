//! When which mover is killed.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::cli::parse_duration;

/// Who is to be killed, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KillSpec {
    /// A mover's name, or `all-secondary`.
    pub who: String,
    /// Time from the start of writing.
    pub at: Duration,
}

/// The word for all movers of the secondary site.
pub const ALL_SECONDARY: &str = "all-secondary";

impl FromStr for KillSpec {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let allowed =
            || format!("{text:?}; allowed: MOVER@TIME or {ALL_SECONDARY}@TIME, like s1@3s");
        let (who, at) = text.split_once('@').ok_or_else(allowed)?;
        if who.is_empty() {
            return Err(allowed());
        }
        Ok(Self { who: who.to_owned(), at: parse_duration(at).map_err(|_| allowed())? })
    }
}

impl fmt::Display for KillSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}ms", self.who, self.at.as_millis())
    }
}

/// One kill of the plan: these movers at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    /// Time from the start of writing.
    pub at: Duration,
    /// The movers' names.
    pub movers: Vec<String>,
}

/// Why kills cannot be planned.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum KillError {
    /// Only secondary movers are restarted by a lab of this version: the primaries keep what is
    /// not confirmed in memory, and failing over is not theirs yet.
    #[error("--kill {spec}: {who:?} is no mover of the secondary site; allowed: {allowed}")]
    NotSecondary {
        /// What was asked for.
        spec: String,
        /// The name in it.
        who: String,
        /// What is allowed.
        allowed: String,
    },
    /// It would happen after the end.
    #[error("--kill {spec}: writing ends after {seconds} s")]
    TooLate {
        /// What was asked for.
        spec: String,
        /// How long is written.
        seconds: f64,
    },
}

/// Numbers from a seed: SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0. Its bias is below 2⁻³² for any bound a lab has.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound
    }
}

/// The kills in order of time: those that were asked for, and `random` more, of one mover or of
/// all, drawn from `seed` between a tenth and nine tenths of the run.
///
/// # Errors
/// [`KillError`].
pub fn plan(
    asked: &[KillSpec],
    random: u16,
    seed: u64,
    secondaries: &[String],
    seconds: f64,
) -> Result<Vec<Kill>, KillError> {
    let mut kills = Vec::new();
    for spec in asked {
        let movers = if spec.who == ALL_SECONDARY {
            secondaries.to_vec()
        } else if secondaries.contains(&spec.who) {
            vec![spec.who.clone()]
        } else {
            let allowed = format!("{}, {ALL_SECONDARY}", secondaries.join(", "));
            return Err(KillError::NotSecondary {
                spec: spec.to_string(),
                who: spec.who.clone(),
                allowed,
            });
        };
        if spec.at.as_secs_f64() >= seconds {
            return Err(KillError::TooLate { spec: spec.to_string(), seconds });
        }
        kills.push(Kill { at: spec.at, movers });
    }
    let mut draws = Random(seed);
    let (from_us, span_us) = ((seconds * 1e5) as u64, (seconds * 8e5) as u64);
    for _ in 0..random {
        let at = Duration::from_micros(from_us + draws.below(span_us.max(1)));
        // One of them, or all together: as likely as each single one.
        let who = draws.below(secondaries.len() as u64 + 1) as usize;
        let movers =
            secondaries.get(who).map_or_else(|| secondaries.to_vec(), |one| vec![one.clone()]);
        kills.push(Kill { at, movers });
    }
    kills.sort_by_key(|kill| kill.at);
    Ok(kills)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secondaries() -> Vec<String> {
        vec!["s1".to_owned(), "s2".to_owned()]
    }

    fn spec(text: &str) -> KillSpec {
        text.parse().unwrap()
    }

    #[test]
    fn kills_are_put_in_order() {
        let asked = [spec("s2@3s"), spec("all-secondary@1500ms")];
        let kills = plan(&asked, 0, 0, &secondaries(), 10.0).unwrap();
        let all = Kill { at: Duration::from_millis(1500), movers: secondaries() };
        let one = Kill { at: Duration::from_secs(3), movers: vec!["s2".to_owned()] };
        assert_eq!(kills, [all, one]);
    }

    #[test]
    fn random_kills_come_from_the_seed_and_hit_each_and_all() {
        let first = plan(&[], 50, 7, &secondaries(), 10.0).unwrap();
        assert_eq!(first, plan(&[], 50, 7, &secondaries(), 10.0).unwrap());
        assert_ne!(first, plan(&[], 50, 8, &secondaries(), 10.0).unwrap());
        assert!(first.iter().all(|kill| (1.0..9.0).contains(&kill.at.as_secs_f64())));
        for movers in [vec!["s1".to_owned()], vec!["s2".to_owned()], secondaries()] {
            assert!(first.iter().any(|kill| kill.movers == movers), "{movers:?}");
        }
    }

    #[test]
    fn primaries_and_times_behind_the_end_are_refused() {
        let error = plan(&[spec("p1@1s")], 0, 0, &secondaries(), 10.0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "--kill p1@1000ms: \"p1\" is no mover of the secondary site; allowed: s1, s2, \
             all-secondary"
        );
        assert!(plan(&[spec("s1@10s")], 0, 0, &secondaries(), 10.0).is_err());
        assert!("s1".parse::<KillSpec>().is_err());
        assert!("s1@3".parse::<KillSpec>().is_err());
    }
}
