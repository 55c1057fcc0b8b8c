//! Everything that is counted, as metrics (P7). Names are stable; `docs/operations.md` lists them.

use super::model::{GroupState, Metric, Summary};
use super::status::View;
use crate::proto::types::VolumeId;
use crate::runtime::messages::{PeerState, PollerSnapshot};

/// The states a group can be in, in the order of the model.
const STATES: [GroupState; 7] = [
    GroupState::InitialCopy,
    GroupState::Consistent,
    GroupState::Buffering,
    GroupState::Tracking,
    GroupState::Resyncing,
    GroupState::FailedOver,
    GroupState::Reversed,
];

#[derive(Default)]
struct List(Vec<Metric>);

impl List {
    fn add(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        self.0.push(Metric { name: name.to_owned(), labels, value });
    }

    fn count(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.add(name, labels, value as f64);
    }

    /// A distribution as quantiles, count and maximum; `unit` values make a second.
    fn summary(&mut self, name: &str, labels: &[(&str, &str)], summary: &Summary, unit: f64) {
        for (quantile, value) in [
            ("0.5", summary.p50),
            ("0.9", summary.p90),
            ("0.99", summary.p99),
            ("0.999", summary.p999),
            ("1", summary.max),
        ] {
            let mut labels = labels.to_vec();
            labels.push(("quantile", quantile));
            self.add(name, &labels, value as f64 / unit);
        }
        self.count(&format!("{name}_count"), labels, summary.count);
    }
}

impl View<'_> {
    /// All counters and gauges.
    #[must_use]
    pub fn metrics(&self) -> Vec<Metric> {
        let mut list = List::default();
        let status = self.status();
        let id = status.id.to_string();
        let labels = [
            ("mover", status.mover.as_str()),
            ("id", id.as_str()),
            ("site", status.site.as_str()),
            ("version", status.version.as_str()),
        ];
        list.add("info", &labels, 1.0);
        list.add("uptime_seconds", &[], status.uptime_ms as f64 / 1e3);
        list.count("ready", &[], u64::from(status.ready));
        list.count("degraded", &[], status.degraded.len() as u64);
        list.count("cluster_store_up", &[], u64::from(status.cluster.available));
        list.count("cluster_leader", &[], u64::from(status.cluster.leads));
        if let Some(ms) = status.cluster.lease_remaining_ms {
            list.add("cluster_lease_seconds", &[], ms as f64 / 1e3);
        }
        self.pollers(&mut list);
        self.group_metrics(&mut list);
        self.volume_metrics(&mut list);
        self.link_metrics(&mut list);
        list.0
    }

    fn pollers(&self, list: &mut List) {
        for poller in &self.evidence.board.pollers {
            let Some(snapshot) = poller.snapshot.as_deref() else { continue };
            let index = poller.shard.poller.to_string();
            let core = poller.core.to_string();
            let labels = [("poller", index.as_str()), ("core", core.as_str())];
            list.count("poller_busy_cycles_total", &labels, snapshot.busy_cycles);
            list.count("poller_idle_cycles_total", &labels, snapshot.idle_cycles);
            list.count("poller_turns_total", &labels, snapshot.turns);
            list.add("poller_busy_ratio", &labels, poller.load().busy_percent / 100.0);
            list.count("arena_used_bytes", &labels, snapshot.arena_bytes.0);
            list.count("arena_bytes", &labels, snapshot.arena_bytes.1);
            if let Some(journal) = snapshot.journal {
                list.count("journal_used_bytes", &labels, journal.used_bytes);
                list.count("journal_bytes", &labels, journal.capacity_bytes);
                list.count("journal_failed", &labels, u64::from(journal.failed));
            }
            list.count("host_commands_waiting", &labels, u64::from(snapshot.waiting));
            list.count("host_commands_waited_total", &labels, snapshot.waited);
            shard_metrics(list, &labels, snapshot);
        }
    }

    fn group_metrics(&self, list: &mut List) {
        for status in self.groups() {
            let group = [("group", status.name.as_str())];
            for state in STATES {
                let labels = [group[0], ("state", state.name())];
                list.count("group_state", &labels, u64::from(status.state == state));
            }
            list.count("group_protected", &group, u64::from(status.protected));
            list.count("group_needs_resync", &group, u64::from(status.needs_resync.is_some()));
            list.add("group_period_seconds", &group, status.period_ms as f64 / 1e3);
            if let Some(stamps) = status.timestamps {
                list.count("timestamps_synchronised", &group, u64::from(stamps.synchronised));
                if let Some(error_ns) = stamps.error_ns {
                    list.add("timestamp_error_seconds", &group, f64::from(error_ns) / 1e9);
                }
            }
            list.count("set_open", &group, status.sets.open);
            list.count("set_received", &group, status.sets.received);
            list.count("set_applied", &group, status.sets.applied);
            if let Some(point) = status.consistency_point {
                let seconds = point.time_unix_ms as f64 / 1e3;
                list.count("consistency_point_set", &group, point.set);
                list.add("consistency_point_time_seconds", &group, seconds);
            }
            if let Some(ms) = status.recovery_point_ms {
                list.add("recovery_point_seconds", &group, ms / 1e3);
            }
            list.count("backlog_bytes", &group, status.backlog_bytes);
            list.count("backlog_sets", &group, status.backlog_sets);
            list.count("sets_formed_total", &group, status.totals.sets_formed);
            list.count("sets_done_total", &group, status.totals.sets_applied);
            list.count("replicated_bytes_total", &group, status.totals.bytes_replicated);
            list.summary("boundary_hold_seconds", &group, &status.boundary_hold_ns, 1e9);
            list.summary("recovery_point_history_seconds", &group, &status.recovery_point_us, 1e6);
        }
        let latency = Summary::from(&self.evidence.board.write_latency_ns);
        list.summary("write_latency_seconds", &[], &latency, 1e9);
    }

    fn volume_metrics(&self, list: &mut List) {
        for volume in self.volumes() {
            let labels = [("group", volume.group.as_str()), ("volume", volume.name.as_str())];
            list.count("volume_replicated", &labels, u64::from(volume.replicated));
            if !volume.replicated {
                continue;
            }
            let counters = self.counters(VolumeId(volume.id));
            list.count("volume_reads_total", &labels, counters.reads);
            list.count("volume_writes_total", &labels, counters.writes);
            list.count("volume_read_bytes_total", &labels, counters.bytes_read);
            list.count("volume_written_bytes_total", &labels, counters.bytes_written);
            list.count("volume_errors_total", &labels, counters.errors);
            list.count("volume_last_seq", &labels, volume.last_seq);
            list.count("volume_retained_bytes", &labels, volume.retained_bytes);
        }
    }

    fn link_metrics(&self, list: &mut List) {
        for poller in &self.evidence.board.pollers {
            let links = poller.snapshot.iter().flat_map(|snapshot| &snapshot.links);
            for link in links {
                let (here, there) = (poller.shard.to_string(), link.peer.to_string());
                let labels = [("from", here.as_str()), ("to", there.as_str())];
                list.count("link_up", &labels, u64::from(link.state == PeerState::Up));
                list.count("link_packets_sent_total", &labels, link.sent);
                list.count("link_packets_again_total", &labels, link.retransmitted);
                list.count("link_packets_received_total", &labels, link.received);
                list.count("link_packets_refused_total", &labels, link.refused);
                list.count("link_packets_duplicate_total", &labels, link.duplicates);
                list.add("link_round_trip_seconds", &labels, link.rtt_ns as f64 / 1e9);
            }
        }
    }
}

fn shard_metrics(list: &mut List, labels: &[(&str, &str)], snapshot: &PollerSnapshot) {
    let Some(primary) = &snapshot.primary else { return };
    let counters = &primary.counters;
    list.count("updates_total", labels, counters.updates);
    list.count("update_bytes_total", labels, counters.bytes);
    list.count("updates_acknowledged_total", labels, counters.acknowledged);
    list.count("updates_mirrored_total", labels, counters.mirrored);
    list.count("updates_forwarded_total", labels, counters.forwarded);
    list.count("updates_taken_total", labels, counters.taken);
    list.count("updates_rejected_total", labels, counters.rejected);
    list.count("updates_misdirected_total", labels, counters.misdirected);
    list.count("updates_read_back_total", labels, counters.read_back);
    list.count("updates_overtaken_total", labels, counters.overtaken);
    list.count("asks_total", labels, snapshot.remote.asked);
    list.count("asks_answered_total", labels, snapshot.remote.answered);
    list.count("asks_given_up_total", labels, snapshot.remote.given_up);
    list.count("updates_void_total", labels, counters.voids);
    list.count("updates_overlapping_total", labels, counters.overlaps);
    list.count("records_transferred_total", labels, counters.transfers);
    list.count("stale_epoch_total", labels, counters.stale_epoch);
    list.count("unexpected_messages_total", labels, counters.unexpected);
    list.count("updates_retained", labels, u64::from(primary.retained.0));
    list.count("copies_held", labels, u64::from(primary.retained.1));
}
