//! What is done to a lab while it runs, and when: movers killed, movers and stores stopped for a while.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use super::options::{Base, RunOptions, Shape, Store, Transport};
use super::plan::copies;
use crate::cli::parse_duration;

mod events;

/// Who is to be killed, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KillSpec {
    /// A mover's name, or `all-secondary`.
    pub who: String,
    /// Time from the start of writing.
    pub at: Duration,
}

/// Who is to be stopped, when, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopSpec {
    /// A mover's name, or a site's word.
    pub who: String,
    /// Time from the start of writing.
    pub at: Duration,
    /// How long.
    pub length: Duration,
}

/// The word for all movers of the secondary site.
pub const ALL_SECONDARY: &str = "all-secondary";
/// No time at all.
const NONE: Duration = Duration::ZERO;
/// The sites' words, and the services that keep their stores.
const STORES: [(&str, &str); 2] = [("primary", "etcd-here"), ("secondary", "etcd-there")];

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

impl FromStr for StopSpec {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let allowed = || format!("{text:?}; allowed: WHO@TIME:LENGTH, like p2@3s:10s");
        let (who, span) = text.split_once('@').ok_or_else(allowed)?;
        let (at, length) = span.split_once(':').ok_or_else(allowed)?;
        let span = |text: &str| parse_duration(text).map_err(|_| allowed());
        if who.is_empty() {
            return Err(allowed());
        }
        Ok(Self { who: who.to_owned(), at: span(at)?, length: span(length)? })
    }
}

impl fmt::Display for KillSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}ms", self.who, self.at.as_millis())
    }
}

impl fmt::Display for StopSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}ms:{}ms", self.who, self.at.as_millis(), self.length.as_millis())
    }
}

/// Whom random kills hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KillOf {
    /// Secondary movers, one or all of them.
    Secondary,
    /// Primary movers, one at a time.
    Primary,
    /// Either.
    Any,
}

/// Kinds of what is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A primary mover killed (-9), and started again.
    KillPrimary,
    /// Secondary movers killed (-9), and started again.
    KillSecondary,
    /// A primary mover stopped (SIGSTOP), and continued.
    Pause,
    /// A site's cluster store stopped (SIGSTOP), and continued.
    StopStore,
    /// A primary mover drained, and started again once it had left.
    Drain,
    /// A volume moved to another primary mover.
    Move,
    /// A primary mover that was not there before, started.
    Join,
    /// A primary mover cut off the others, and joined to them again.
    Partition,
    /// The same one way: the others did not hear it.
    Mute,
    /// The same one way: it did not hear the others.
    Deafen,
}

impl Kind {
    /// In words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::KillPrimary => "primary mover killed",
            Self::KillSecondary => "secondary movers killed",
            Self::Pause => "primary mover paused",
            Self::StopStore => "store stopped",
            Self::Drain => "primary mover drained",
            Self::Move => "volume moved",
            Self::Join => "primary mover joined",
            Self::Partition => "primary mover cut off",
            Self::Mute => "primary mover not heard",
            Self::Deafen => "primary mover deaf",
        }
    }
}

/// One fault of the plan. The next one waits until the lab has got over it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Time from the start of writing.
    pub at: Duration,
    /// Least time since the lab got over the one before.
    pub after: Duration,
    /// What is done.
    pub kind: Kind,
    /// To these processes, at once.
    pub who: Vec<String>,
    /// How long they are stopped, or down.
    pub length: Duration,
}

/// Why faults cannot be planned.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FaultError {
    /// There is nobody of that name whom this could be done to.
    #[error("{spec}: {who:?} is not there; allowed: {allowed}")]
    Unknown {
        /// What was asked for.
        spec: String,
        /// The name in it.
        who: String,
        /// What is allowed.
        allowed: String,
    },
    /// Nobody would take the volumes over.
    #[error(
        "{spec}: hosts lose a primary mover's volumes unless others may take them over; use --store etcd --base array"
    )]
    NoTakeover {
        /// What was asked for.
        spec: String,
    },
    /// Acknowledged updates would be lost.
    #[error(
        "{spec}: with one copy of each update its mover's end loses some; use --copies 2 or more"
    )]
    OneCopy {
        /// What was asked for.
        spec: String,
    },
    /// Only network namespaces can be cut.
    #[error(
        "{spec}: only namespaces can be cut off each other, and hosts must reach them still; use --network veth --traffic separate"
    )]
    NotCut {
        /// What was asked for.
        spec: String,
    },
    /// The client could not give a stopped mover's path up.
    #[error(
        "{spec}: over vfio-user a host cannot tell a stopped mover from a slow one; use --transport tcp"
    )]
    SharedMemory {
        /// What was asked for.
        spec: String,
    },
    /// A second client needs a path of its own.
    #[error(
        "{spec}: these volumes have a client of their own, and a vfio-user path serves one; use --transport tcp"
    )]
    OneClient {
        /// What was asked for.
        spec: String,
    },
    /// There is no store that is a process.
    #[error("{spec}: use --store etcd")]
    NoStore {
        /// What was asked for.
        spec: String,
    },
    /// It would happen after the end.
    #[error("{spec}: writing ends after {seconds} s")]
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

/// The movers of a lab, by site.
#[derive(Debug, Clone)]
pub struct Names {
    /// Of the primary site, from the start.
    pub primary: Vec<String>,
    /// Of the primary site, joining later.
    pub joining: Vec<String>,
    /// Of the secondary site.
    pub secondary: Vec<String>,
}

/// The faults in order of time: those that were asked for, and random kills drawn from `seed` between
/// a tenth and nine tenths of the run. At most one primary mover is killed or paused at a time, which
/// is fewer than hold each update.
///
/// # Errors
/// [`FaultError`].
pub fn plan(options: &RunOptions, seed: u64, names: &Names) -> Result<Vec<Fault>, FaultError> {
    let (shape, down) = (&options.shape, options.down);
    let mut faults = Vec::new();
    for spec in &options.kill {
        let text = format!("--kill {spec}");
        let (kind, who) = if spec.who == ALL_SECONDARY {
            (Kind::KillSecondary, names.secondary.clone())
        } else if names.secondary.contains(&spec.who) {
            (Kind::KillSecondary, vec![spec.who.clone()])
        } else {
            survivable(
                shape,
                names,
                &spec.who,
                &text,
                &[&names.secondary.join(", "), ALL_SECONDARY],
            )?;
            (Kind::KillPrimary, vec![spec.who.clone()])
        };
        faults.push(at_time(options, &text, spec.at, kind, who, down)?);
    }
    for spec in &options.pause {
        let text = format!("--pause {spec}");
        survivable(shape, names, &spec.who, &text, &[])?;
        if shape.transport() != Transport::Tcp {
            return Err(FaultError::SharedMemory { spec: text });
        }
        let who = vec![spec.who.clone()];
        faults.push(at_time(options, &text, spec.at, Kind::Pause, who, spec.length)?);
    }
    let cuts = [
        ("partition", &options.partition, Kind::Partition),
        ("mute", &options.mute, Kind::Mute),
        ("deafen", &options.deafen, Kind::Deafen),
    ];
    for (option, specs, kind) in cuts {
        for spec in specs {
            let text = format!("--{option} {spec}");
            survivable(shape, names, &spec.who, &text, &[])?;
            if !shape.can_cut() {
                return Err(FaultError::NotCut { spec: text });
            }
            let who = vec![spec.who.clone()];
            faults.push(at_time(options, &text, spec.at, kind, who, spec.length)?);
        }
    }
    for spec in &options.join {
        let text = format!("--join {spec}");
        let who = vec![spec.who.clone()];
        faults.push(at_time(options, &text, spec.at, Kind::Join, who, NONE)?);
    }
    for spec in &options.stop_store {
        let text = format!("--stop-store {spec}");
        let Some((_, service)) = STORES.iter().find(|(site, _)| *site == spec.who) else {
            let allowed = STORES.map(|(site, _)| site).join(", ");
            return Err(FaultError::Unknown { spec: text, who: spec.who.clone(), allowed });
        };
        if shape.store() != Store::Etcd {
            return Err(FaultError::NoStore { spec: text });
        }
        let who = vec![(*service).to_owned()];
        faults.push(at_time(options, &text, spec.at, Kind::StopStore, who, spec.length)?);
    }
    for spec in &options.drain {
        let text = format!("--drain {spec}");
        survivable(shape, names, &spec.who, &text, &[])?;
        let who = vec![spec.who.clone()];
        faults.push(at_time(options, &text, spec.at, Kind::Drain, who, down)?);
    }
    let mut draws = Random(seed);
    let mut pool: Vec<(Kind, Vec<String>)> = Vec::new();
    if options.kill_of != KillOf::Primary {
        // One of them, or all together: as likely as each single one.
        let each = names.secondary.iter().map(|name| vec![name.clone()]);
        let groups = each.chain([names.secondary.clone()]);
        pool.extend(groups.map(|who| (Kind::KillSecondary, who)));
    }
    if options.kill_of != KillOf::Secondary {
        for name in &names.primary {
            if options.kill_random > 0 {
                survivable(shape, names, name, "--kill-of", &[])?;
            }
            pool.push((Kind::KillPrimary, vec![name.clone()]));
        }
    }
    let (from_us, span_us) = ((options.seconds * 1e5) as u64, (options.seconds * 8e5) as u64);
    for _ in 0..options.kill_random {
        let at = Duration::from_micros(from_us + draws.below(span_us.max(1)));
        let (kind, who) = pool[draws.below(pool.len() as u64) as usize].clone();
        faults.push(Fault { at, after: NONE, kind, who, length: down });
    }
    for (count, kind) in [(options.drain_random, Kind::Drain), (options.move_random, Kind::Move)] {
        for _ in 0..count {
            let who = &names.primary[draws.below(names.primary.len() as u64) as usize];
            let option = if kind == Kind::Drain { "--drain-random" } else { "--move-random" };
            survivable(shape, names, who, option, &[])?;
            let at = Duration::from_micros(from_us + draws.below(span_us.max(1)));
            faults.push(Fault { at, after: NONE, kind, who: vec![who.clone()], length: down });
        }
    }
    faults.sort_by_key(|fault| fault.at);
    faults.extend(events::draw(options, &mut draws, names)?);
    Ok(faults)
}

/// Whether hosts and acknowledged updates survive the end of primary mover `who`.
fn survivable(
    shape: &Shape,
    names: &Names,
    who: &str,
    spec: &str,
    others: &[&str],
) -> Result<(), FaultError> {
    let spec = spec.to_owned();
    let all = [names.primary.as_slice(), &names.joining].concat();
    if !all.iter().any(|name| name == who) {
        let allowed = [&[all.join(", ").as_str()], others].concat().join(", ");
        return Err(FaultError::Unknown { spec, who: who.to_owned(), allowed });
    }
    if shape.store() != Store::Etcd || shape.base() != Base::Array {
        return Err(FaultError::NoTakeover { spec });
    }
    if copies(shape) < 2 { Err(FaultError::OneCopy { spec }) } else { Ok(()) }
}

/// What was asked for by `spec` to be done at a time of its own, which must be before writing ends.
fn at_time(
    options: &RunOptions,
    spec: &str,
    at: Duration,
    kind: Kind,
    who: Vec<String>,
    length: Duration,
) -> Result<Fault, FaultError> {
    let seconds = options.seconds;
    if at.as_secs_f64() < seconds {
        return Ok(Fault { at, after: NONE, kind, who, length });
    }
    Err(FaultError::TooLate { spec: spec.to_owned(), seconds })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        run: RunOptions,
    }

    const TAKEOVER: &str = "--store etcd --base array";

    fn names() -> Names {
        let named = |names: [&str; 2]| names.map(str::to_owned).to_vec();
        Names { primary: named(["p1", "p2"]), joining: Vec::new(), secondary: named(["s1", "s2"]) }
    }

    fn planned(arguments: &str, seed: u64) -> Result<Vec<Fault>, String> {
        let arguments = std::iter::once("lab").chain(arguments.split_whitespace());
        let options = Cli::try_parse_from(arguments).map_err(|e| e.to_string())?.run;
        let mut names = names();
        names.joining = options.join.iter().map(|spec| spec.who.clone()).collect();
        plan(&options, seed, &names).map_err(|error| error.to_string())
    }

    fn settled(arguments: &str) -> Result<RunOptions, String> {
        let arguments = std::iter::once("lab").chain(arguments.split_whitespace());
        let options = Cli::try_parse_from(arguments).map_err(|e| e.to_string())?.run;
        options.settle().map_err(|error| error.to_string())
    }

    #[test]
    fn what_primary_movers_need_to_fail_is_there_unless_something_else_is_asked_for() {
        let calm = settled("--kill s1@1s").unwrap().shape;
        assert_eq!((calm.base(), calm.store()), (Base::File, Store::Embedded));
        let fails = settled("--kill p1@1s --join p5@2s --join p4@3s").unwrap().shape;
        assert_eq!((fails.base(), fails.store()), (Base::Array, Store::Etcd));
        assert_eq!((fails.transport(), fails.primaries()), (Transport::VfioUser, 5));
        let cut = settled("--deafen p1@1s:1s").unwrap().shape;
        assert_eq!(
            (cut.transport(), cut.network()),
            (Transport::Tcp, crate::lab::options::Network::Veth)
        );
        assert_eq!(settled("--drain p1@1s --base file").unwrap().shape.base(), Base::File);
        let odd = settled("--join p5@1s").unwrap_err();
        assert_eq!(odd, "--join p5@1000ms: \"p5\" is not there; allowed: each of p4 once");
        assert!(settled("--join p4@1s --join p4@2s").unwrap_err().contains("each of p4, p5 once"));
    }

    #[test]
    fn events_are_of_the_kinds_that_hosts_survive_and_wait_for_each_other() {
        let kinds = |arguments: &str| {
            let arguments = format!("{TAKEOVER} --events 200 {arguments}");
            let faults = planned(&arguments, 7).unwrap();
            assert_eq!(faults, planned(&arguments, 7).unwrap());
            assert!(faults.len() == 200 && faults.iter().any(|fault| fault.after > NONE));
            faults.iter().map(|fault| fault.kind).collect::<std::collections::BTreeSet<Kind>>()
        };
        let all = kinds("--transport tcp --network veth");
        assert_eq!(all.len(), 9, "{all:?}");
        let shared = kinds("");
        assert!(![Kind::Pause, Kind::Mute].iter().any(|kind| shared.contains(kind)), "{shared:?}");
        assert!(planned("--events 1", 7).unwrap_err().contains("use --store etcd --base array"));
    }

    #[test]
    fn only_namespaces_are_cut_and_a_mover_that_joins_may_fail_later() {
        let cut = format!("{TAKEOVER} --partition p1@1s:1s");
        assert!(planned(&cut, 0).unwrap_err().contains("use --network veth"));
        let faults = planned(&format!("{TAKEOVER} --join p3@1s --kill p3@2s"), 0).unwrap();
        let kinds: Vec<Kind> = faults.iter().map(|fault| fault.kind).collect();
        assert_eq!(kinds, [Kind::Join, Kind::KillPrimary]);
    }

    #[test]
    fn faults_are_put_in_order() {
        let asked = format!(
            "{TAKEOVER} --transport tcp --kill s2@3s --kill all-secondary@1500ms --kill p2@2s \
             --pause p1@4s:2s --stop-store secondary@1s:5s --down 1s"
        );
        let fault = |at, kind, who: &[&str], length| Fault {
            at: Duration::from_millis(at),
            after: NONE,
            kind,
            who: who.iter().map(|name| (*name).to_owned()).collect(),
            length: Duration::from_secs(length),
        };
        let expected = [
            fault(1000, Kind::StopStore, &["etcd-there"], 5),
            fault(1500, Kind::KillSecondary, &["s1", "s2"], 1),
            fault(2000, Kind::KillPrimary, &["p2"], 1),
            fault(3000, Kind::KillSecondary, &["s2"], 1),
            fault(4000, Kind::Pause, &["p1"], 2),
        ];
        assert_eq!(planned(&asked, 0).unwrap(), expected);
    }

    #[test]
    fn random_kills_come_from_the_seed_and_hit_whom_they_may() {
        let whom = |arguments: &str| {
            let arguments = format!("{TAKEOVER} --kill-random 60 {arguments}");
            let first = planned(&arguments, 7).unwrap();
            assert_eq!(first, planned(&arguments, 7).unwrap());
            assert_ne!(first, planned(&arguments, 8).unwrap());
            assert!(first.iter().all(|kill| (1.0..9.0).contains(&kill.at.as_secs_f64())));
            let mut hit: Vec<String> = first.iter().map(|kill| kill.who.join("+")).collect();
            hit.sort();
            hit.dedup();
            hit.join(" ")
        };
        assert_eq!(whom(""), "s1 s1+s2 s2");
        assert_eq!(whom("--kill-of primary"), "p1 p2");
        assert_eq!(whom("--kill-of any"), "p1 p2 s1 s1+s2 s2");
    }

    #[test]
    fn what_cannot_be_survived_or_done_is_refused_and_says_what_to_use() {
        let refused = |arguments: &str| planned(arguments, 0).unwrap_err();
        assert!(refused("--kill p1@1s").contains("use --store etcd --base array"));
        assert!(refused("--kill-random 1 --kill-of any").contains("--store etcd"));
        assert!(
            refused("--store etcd --base array --copies 1 --kill p1@1s").contains("--copies 2")
        );
        assert_eq!(
            refused("--kill p7@1s"),
            "--kill p7@1000ms: \"p7\" is not there; allowed: p1, p2, s1, s2, all-secondary"
        );
        let pause = format!("{TAKEOVER} --pause p1@1s:1s");
        assert!(refused(&pause).contains("use --transport tcp"));
        assert!(refused(&pause.replace("p1", "s1")).contains("allowed: p1, p2"));
        assert!(refused("--stop-store primary@1s:1s").contains("use --store etcd"));
        assert!(refused("--store etcd --stop-store s1@1s:1s").contains("primary, secondary"));
        assert!(refused("--kill s1@10s").contains("writing ends after 10 s"));
        for nonsense in ["--kill s1", "--kill s1@3", "--pause p1@3s", "--stop-store @1s:1s"] {
            assert!(refused(nonsense).contains("allowed:"), "{nonsense}");
        }
    }
}
