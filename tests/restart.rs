//! Restarts of every mover of a site, and of both: in order, and by kill -9 while hosts write.
//!
//! The lab's own parts run here, so that a mover's exit code is seen and every process is ended by
//! its pid when a test fails. Nothing is judged by how long it took; limits only end a wait.
#![cfg(feature = "datapath")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]

mod lab_support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::ProgressBar;
use setline::check::images::{self, FileSource, Floor, Images, Initial, ScanOptions, Source};
use setline::check::log::Log;
use setline::config::Role;
use setline::control::model::{ApplyState, GroupState, Status};
use setline::lab::cluster::Cluster;
use setline::lab::interrupt::Interrupt;
use setline::lab::options::RunOptions;
use setline::lab::verdict;
use setline::lab::writer::{Outcome, Writer};

use lab_support::one_lab;

/// Ends a wait for something that takes a second or two.
const LATE: Duration = Duration::from_secs(60);
/// How often a wait looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const BOTH: [Role; 2] = [Role::Primary, Role::Secondary];

/// A lab's options, parsed as `setline lab run` parses them.
#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    options: RunOptions,
}

/// A lab in a directory that goes with it. Dropping it kills what still runs.
struct Lab {
    cluster: Cluster,
    options: RunOptions,
    interrupt: Interrupt,
    /// Clients so far.
    writers: u64,
}

impl Lab {
    /// Starts a lab and waits for its first set.
    fn start(arguments: &str) -> Self {
        let words = ["lab"].into_iter().chain(arguments.split_whitespace());
        let Line { options } = Line::parse_from(words);
        let interrupt = Interrupt::take().unwrap();
        let mut cluster = Cluster::make(&options.shape, true).unwrap();
        cluster.remove_directory();
        let mut lab = Self { cluster, options, interrupt, writers: 0 };
        lab.start_movers(&BOTH);
        lab.cluster.wait_consistent(&lab.interrupt).unwrap();
        lab
    }

    fn names(&self, roles: &[Role]) -> Vec<String> {
        roles.iter().flat_map(|role| self.cluster.names(*role)).collect()
    }

    fn start_movers(&mut self, roles: &[Role]) {
        for name in self.names(roles) {
            self.cluster.start(&name).unwrap();
        }
    }

    fn wait_ready(&mut self) {
        let (names, bar) = (self.names(&BOTH), ProgressBar::hidden());
        self.cluster.wait_ready(&names, &self.interrupt, &bar).unwrap();
    }

    /// Kills all movers of the sites, one right after the other.
    fn kill(&mut self, roles: &[Role]) {
        for name in self.names(roles) {
            self.cluster.kill(&name);
        }
    }

    /// Stops all movers, primary movers first; fails unless each says that nothing is lost.
    fn stop(&mut self) {
        self.cluster.stop_all().unwrap_or_else(|error| panic!("{error}\n{}", self.logs()));
    }

    /// A client that has had writes acknowledged.
    fn writer(&mut self, count: u64) -> Writer {
        // The status and the log of the one before.
        for file in ["writer.status.json", "writer.log"] {
            let _ = std::fs::remove_file(self.cluster.site().directory.join(file));
        }
        self.writers += 1;
        let mut writer = Writer::start(&self.cluster, &self.options, self.writers).unwrap();
        self.until("writes are acknowledged", |lab| {
            lab.cluster.check_running().unwrap();
            writer.check().unwrap();
            writer.progress().is_some_and(|progress| progress.acked_writes >= count)
        });
        writer
    }

    /// Has a client write, end, and see nothing wrong. Its log.
    fn writes(&mut self, count: u64) -> Log {
        let mut writer = self.writer(count);
        let Outcome { host_errors, unfinished_writes, stale_reads, corrupt_reads, .. } =
            writer.finish().unwrap();
        let seen = [host_errors, unfinished_writes, stale_reads, corrupt_reads];
        assert_eq!(seen, [0; 4], "errors, unfinished, stale, corrupt\n{}", self.logs());
        Log::open(writer.log()).unwrap()
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + LATE;
        while !done(self) {
            assert!(Instant::now() < end, "not in time: {what}\n{}", self.logs());
            self.interrupt.sleep(LOOK_EVERY).unwrap();
        }
    }

    /// Closes the set with the last writes, and waits until every secondary mover has applied it.
    fn settle(&mut self) {
        let group = self.cluster.site().group.clone();
        let closed = self.cluster.coordinator(Role::Primary, |client| client.close_set(&group));
        let closed = closed.unwrap_or_else(|error| panic!("{error}\n{}", self.logs())).id;
        self.until("the last set is applied", |lab| {
            lab.names(&[Role::Secondary])
                .iter()
                .all(|name| lab.status(name).is_some_and(|s| s.groups[0].sets.applied >= closed))
        });
    }

    fn status(&self, name: &str) -> Option<Status> {
        self.cluster.status(name).ok()
    }

    /// Waits until every mover finds everything as it should be. That a resynchronisation is
    /// needed none may say meanwhile.
    fn becomes_healthy(&mut self) {
        self.until("all is well", |lab| {
            lab.names(&BOTH).iter().all(|name| {
                let Some(status) = lab.status(name) else { return false };
                assert_eq!(status.groups[0].needs_resync, None, "{name}\n{}", lab.logs());
                is_healthy(&status)
            })
        });
    }

    /// Waits until every mover of both sites is up and says that the group must be resynchronised.
    /// Those of `knowing` sites, which have lost what they held or were told before, say so from
    /// their first answer on.
    fn demands_resync(&mut self, knowing: &[Role]) {
        let know = self.names(knowing);
        self.until("every mover tells what was lost", |lab| {
            lab.cluster.check_running().unwrap();
            lab.names(&BOTH).iter().all(|name| {
                let Some(status) = lab.status(name) else { return false };
                let demands = demands_resync(&status);
                assert!(demands || !know.contains(name), "{name} hides it: {status:#?}");
                status.ready && demands
            })
        });
    }

    /// Stops apply at a boundary. The volumes stand still then.
    fn pause_apply(&mut self) -> u64 {
        let group = self.cluster.site().group.clone();
        let mut at = 0;
        self.until("apply stands at a boundary", |lab| {
            let paused = lab.cluster.coordinator(Role::Secondary, |c| c.pause_apply(&group));
            match paused.unwrap().apply {
                ApplyState::Paused { set } => at = set,
                _ => return false,
            }
            true
        });
        at
    }

    fn secondary_images(&self) -> Vec<PathBuf> {
        self.cluster.plan().volumes.iter().map(|volume| volume.secondary.clone()).collect()
    }

    /// The secondary's images are one point in time of what the only client wrote.
    fn secondary_is_a_cut(&self, log: &Log) {
        let verdict = verdict::judge(&self.secondary_images(), Some(log), None).unwrap();
        assert!(verdict.consistent, "{:#?}\n{}", verdict.faults, self.logs());
        assert!(verdict.cut.commands > 0, "nothing of what was written is there");
    }

    /// Both sites' images are equal, and nothing that the newest client had acknowledged is
    /// missing. Clients before it may have written, too. With all movers stopped.
    fn sites_are_equal(&self, log: &Log) {
        let block_bytes = self.options.shape.block_bytes;
        let equality = verdict::compare_sites(self.cluster.plan(), block_bytes).unwrap().unwrap();
        assert!(equality.equal, "{} blocks differ\n{}", equality.differing_blocks, self.logs());
        let files = self.secondary_images();
        let sources = files
            .iter()
            .map(|file| -> Box<dyn Source> { Box::new(FileSource::open(file).unwrap()) });
        let options = ScanOptions { initial: Initial::Any, ..ScanOptions::of_log(log) };
        let images = Images::scan(sources.collect(), &options).unwrap();
        let verdict = images::check(&images, Some(log), Some(&Floor::end_of(log)));
        assert!(verdict.consistent, "{:#?}\n{}", verdict.faults, self.logs());
        assert_eq!(verdict.floor_met, Some(true), "{:#?}\n{}", verdict.lost, self.logs());
    }

    /// The last lines of every mover's log.
    fn logs(&self) -> String {
        let tail = |name: &String| {
            let log = &self.cluster.site().mover(name).unwrap().log;
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let last = &lines[lines.len().saturating_sub(25)..];
            format!("== {name}\n{}\n", last.join("\n"))
        };
        self.names(&BOTH).iter().map(tail).collect()
    }
}

fn is_healthy(status: &Status) -> bool {
    status.degraded.is_empty() && status.groups[0].state == GroupState::Consistent
}

fn demands_resync(status: &Status) -> bool {
    let group = &status.groups[0];
    group.state == GroupState::Tracking
        && group.needs_resync.is_some()
        && !group.protected
        && !status.degraded.is_empty()
}

#[test]
fn a_restart_of_all_movers_in_order_goes_on_where_it_was() {
    let _alone = one_lab();
    let mut lab = Lab::start("--primary 2 --secondary 2");
    let log = lab.writes(500);
    // What is not closed yet is drained by the stop.
    lab.stop();
    lab.sites_are_equal(&log);
    assert!(lab.names(&BOTH).iter().all(|name| lab.status(name).is_none()), "all are stopped");
    lab.start_movers(&BOTH);
    lab.wait_ready();
    lab.becomes_healthy();
    let log = lab.writes(500);
    lab.settle();
    lab.becomes_healthy();
    lab.stop();
    lab.sites_are_equal(&log);
}

#[test]
fn a_stop_of_all_movers_at_the_same_moment_ends_clean_and_goes_on_where_it_was() {
    let _alone = one_lab();
    let mut lab = Lab::start("--primary 2 --secondary 2");
    // In the worst order: the secondary movers hear it first.
    for roles in [[Role::Secondary, Role::Primary], [Role::Primary, Role::Secondary]] {
        lab.writes(300);
        let stopped = lab.cluster.stop_together(&roles);
        stopped.unwrap_or_else(|error| panic!("{error}\n{}", lab.logs()));
        lab.start_movers(&BOTH);
        lab.wait_ready();
        lab.becomes_healthy();
    }
    let log = lab.writes(300);
    lab.settle();
    lab.stop();
    lab.sites_are_equal(&log);
}

/// Kills all movers of `roles` while a client writes and starts them again. Nobody may then say
/// that all is well, every mover of both sites asks for a resynchronisation, also after further
/// restarts, the secondary must be at a point in time, and everything must still work: hosts are
/// served, movers stop when told to, and a restart in order forgets nothing.
fn killed_while_hosts_write(roles: &[Role]) {
    let _alone = one_lab();
    let mut lab = Lab::start("--primary 2 --secondary 2 --rate 2000");
    let writer = lab.writer(1000);
    let log = writer.log().to_owned();
    lab.kill(roles);
    drop(writer);
    let log = Log::open(&log).unwrap();
    lab.start_movers(roles);
    lab.demands_resync(&[Role::Primary]);
    // From here on nobody forgets it, whoever restarts.
    lab.kill(&[Role::Secondary]);
    lab.start_movers(&[Role::Secondary]);
    lab.demands_resync(&BOTH);
    let at = lab.pause_apply();
    assert!(at > 0);
    lab.secondary_is_a_cut(&log);

    lab.writes(200);
    assert_eq!(lab.pause_apply(), at, "sets are not formed before the resynchronisation");
    lab.secondary_is_a_cut(&log);
    lab.stop();
    lab.start_movers(&BOTH);
    lab.demands_resync(&BOTH);
    lab.stop();
    lab.secondary_is_a_cut(&log);
}

#[test]
fn a_kill_of_all_primary_movers_demands_a_resynchronisation_and_leaves_a_consistent_cut() {
    killed_while_hosts_write(&[Role::Primary]);
}

#[test]
fn a_kill_of_all_movers_demands_a_resynchronisation_and_leaves_a_consistent_cut() {
    killed_while_hosts_write(&BOTH);
}
