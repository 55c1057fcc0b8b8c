//! How a mover that starts comes to take part in its site.
//!
//! Where the membership is fixed there is nothing to wait for. Where it follows the record in the
//! cluster's store, the mover either *founds* the site together with all other members, because nobody
//! lives who would know anything; or it *joins* the members that live, with an empty memory. Its former
//! life, if it is still a member, is excluded first: what it had is taken over by the others, not lost.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::boot::Entry;
use super::cluster::part::Part;
use super::cluster::propose::Standing;
use crate::config::Mover;
use crate::proto::types::MoverId;
use crate::runtime::plan::Topology;

/// Between looks.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// How often it is said what is waited for.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// A mover at the door.
#[derive(Debug)]
pub struct Admission {
    part: Part,
    topology: Topology,
    me: MoverId,
    joins: bool,
}

impl Admission {
    /// For `mover`, whose part in the store has begun.
    #[must_use]
    pub fn new(mover: &Mover, part: Part) -> Self {
        let me = MoverId(mover.mover.id);
        Self { part, topology: Topology::new(mover), me, joins: false }
    }

    /// Waits, as long as it takes, and meanwhile calls `pump` all the time. It joins a site only once
    /// `unreached`, which says whom of the members the network does not reach, names nobody. None when
    /// `stopped` says that the mover is to end.
    pub fn wait(
        mut self,
        pump: &mut dyn FnMut(),
        unreached: &mut dyn FnMut(&[MoverId]) -> Vec<MoverId>,
        stopped: &mut dyn FnMut() -> bool,
    ) -> Option<(Part, Entry)> {
        let mut told = Instant::now();
        loop {
            let (entry, waits) = self.turn(unreached);
            if let Some(entry) = entry {
                return Some((self.part, entry));
            }
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                tracing::warn!("not admitted to the site yet: {waits}");
            }
            if stopped() {
                self.part.leave();
                return None;
            }
            pump();
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// One look. How the mover takes part, once that is decided; else what is waited for.
    fn turn(
        &mut self,
        unreached: &mut dyn FnMut(&[MoverId]) -> Vec<MoverId>,
    ) -> (Option<Entry>, String) {
        let unix_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let unix_ms = unix_ms as u64;
        for told in self.part.turn(unix_ms) {
            tracing::info!(kind = told.kind, "{}", told.message);
        }
        if self.part.fixed().is_some() {
            return (Some(Entry::default()), String::new());
        }
        let topology = &self.topology;
        let pollers = |mover| topology.pollers_of(mover);
        let waits = match self.part.standing() {
            Standing::Unknown => {
                let fault = self.part.fault(unix_ms);
                fault.unwrap_or_else(|| "the cluster store has not answered yet".to_owned())
            }
            Standing::Member => {
                let record = self.part.record().map(|record| record.agreed());
                return (Some(Entry { record, joins: self.joins }), String::new());
            }
            Standing::Dormant => {
                self.joins = false;
                let missing = self.part.found();
                match missing.is_empty() {
                    true => "the store takes the record".to_owned(),
                    false => format!(
                        "no member is alive; the site begins when all are there, and these are \
                         missing: {}",
                        missing.join(", ")
                    ),
                }
            }
            Standing::Former => {
                self.part.exclude(&[self.me], "it has started again", pollers, unix_ms);
                "a former life of this mover is still a member".to_owned()
            }
            Standing::Outside => {
                self.joins = true;
                let members = self.part.record().map(|record| record.agreed().members);
                let unreached = unreached(&members.unwrap_or_default());
                let names: Vec<&str> =
                    unreached.iter().filter_map(|id| topology.name(*id)).collect();
                let wait_ms = self.part.join_after_ms(unix_ms);
                if !unreached.is_empty() {
                    // They would wait for its part of every set.
                    format!("it does not reach members of its site: {}", names.join(", "))
                } else if wait_ms > 0 {
                    format!("the others did not hear it; it joins them again in {wait_ms} ms")
                } else {
                    self.part.join(pollers, unix_ms);
                    "the others go on without this mover; it joins them".to_owned()
                }
            }
        };
        (None, waits)
    }
}
