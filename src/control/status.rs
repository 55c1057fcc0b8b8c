//! Answers about the present: what the API shows of groups, volumes, cores, movers and sets.
//!
//! Only translation: the board has the facts, `judge` the verdicts. What this mover cannot know
//! (another mover's counts, say) is left out rather than guessed.

use std::collections::BTreeMap;

use super::board::{GroupBoard, PollerBoard};
use super::cluster::part::Part;
use super::history::SetRecord;
use super::judge::{Evidence, Verdict, broken_words};
use super::model::{
    ApiError, ApplyState, ConsistencyPoint, CoreInfo, ErrorCode, Fencing, GroupState, GroupStatus,
    GroupTotals, LedgerEntry, ManifestVolume, MarksInfo, MoverInfo, NeedsResync, SetInfo, SetState,
    Status, Summary, VolumeInfo, VolumeMap, VolumeMapEntry, colour_name,
};
use super::timing::Timing;
use super::unreplicated::{self, BaseSize};
use crate::config::{Disk, Group, Role, Uuid, Volume};
use crate::proto::command::SetState as ProtoState;
use crate::proto::membership::SiteRecord;
use crate::proto::types::{MoverId, SetId, ShardId, UpdateKind, VolumeId};
use crate::runtime::messages::{LedgerAnswer, PeerState, VolumeCounters};
use crate::runtime::plan::{Plan, PollerPlan};

/// A group's state with the time it began, kept by the driver from turn to turn.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    /// The verdict.
    pub verdict: Verdict,
    /// Since when the state is this one, Unix milliseconds.
    pub since_ms: u64,
}

/// Everything that answers are made from.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Configuration, topology, board, time.
    pub evidence: Evidence<'a>,
    /// The plan.
    pub plan: &'a Plan,
    /// What the primary site has agreed on.
    pub site: &'a SiteRecord,
    /// The groups' standings, in the configuration's order.
    pub standings: &'a [Standing],
    /// What the configuration promises less than one may think.
    pub warnings: &'a [String],
    /// Faults of the mover itself, such as a store that cannot be written.
    pub faults: &'a [String],
    /// How each volume's base is kept from other movers, of those that are open here.
    pub fencing: &'a BTreeMap<VolumeId, Fencing>,
    /// The sizes of bases of unreplicated volumes, of those that are open here.
    pub unreplicated: &'a BTreeMap<Uuid, BaseSize>,
    /// The mover's part in its site's store.
    pub cluster: &'a Part,
    /// What is known of the time.
    pub timing: &'a Timing,
    /// Devices are open and hosts can connect.
    pub serving: bool,
}

impl View<'_> {
    /// How the mover is.
    #[must_use]
    pub fn status(&self) -> Status {
        let me = &self.evidence.mover.mover;
        let mut degraded = self.faults.to_vec();
        degraded.extend(self.evidence.degraded());
        Status {
            mover: me.name.clone(),
            id: me.id,
            site: me.site.clone(),
            role: me.role,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_ms: self.evidence.now.0 / 1_000_000,
            ready: self.ready(),
            epoch: self.site.epoch.0,
            map_version: self.site.map_version.0,
            coordinator: self.coordinator(me.role),
            degraded,
            warnings: self.warnings.to_vec(),
            traffic: self.evidence.mover.traffic(),
            cluster: self.cluster.info(),
            groups: self.groups(),
        }
    }

    /// Devices open, all pollers running, peers met, and at the primary site every group either
    /// has an open set or is known to form none.
    #[must_use]
    pub fn ready(&self) -> bool {
        let board = self.evidence.board;
        let met = board.links.iter().all(|((_, peer), link)| {
            let counts = self.evidence.takes_part(peer.mover);
            let missed = counts && self.evidence.is_expected(peer.mover);
            link.state != PeerState::Unknown || !missed
        });
        let taking = |group: &GroupBoard| match board.role {
            Role::Primary => {
                let state = self.standings[group.index].verdict.state;
                group.open != SetId(0) || state == GroupState::Tracking
            }
            Role::Secondary => true,
        };
        self.serving
            && met
            && board.pollers.iter().all(|poller| poller.started)
            && board.groups.iter().all(taking)
    }

    /// Name of the coordinator of a site.
    #[must_use]
    pub fn coordinator(&self, role: Role) -> Option<String> {
        let topology = &self.plan.topology;
        let shard = match role {
            Role::Primary => Some(self.site.coordinator),
            Role::Secondary => topology.secondary_coordinator,
        };
        shard.and_then(|shard| topology.name(shard.mover)).map(str::to_owned)
    }

    /// All groups.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupStatus> {
        self.evidence.board.groups.iter().map(|group| self.group(group)).collect()
    }

    /// The group called `name`.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`].
    pub fn find(&self, name: &str) -> Result<&GroupBoard, ApiError> {
        let groups = &self.evidence.board.groups;
        groups.iter().find(|group| group.name == name).ok_or_else(|| {
            let names: Vec<&str> = groups.iter().map(|group| group.name.as_str()).collect();
            let advice = format!("the groups are: {}", names.join(", "));
            ApiError::new(ErrorCode::NotFound, format!("there is no group {name:?}"), advice)
        })
    }

    /// One group.
    #[must_use]
    pub fn group(&self, group: &GroupBoard) -> GroupStatus {
        let board = self.evidence.board;
        let config = self.config(group);
        let standing = &self.standings[group.index];
        let now_ns = board.unix_ns(self.evidence.now);
        let tracking = standing.verdict.state == GroupState::Tracking;
        let needs_resync = match &group.resync {
            Some(mark) => {
                let mut reason = broken_words(mark.reason).to_owned();
                if !mark.detail.is_empty() {
                    reason = format!("{reason}: {}", mark.detail);
                }
                Some(NeedsResync { since_unix_ms: mark.since_ms, reason })
            }
            None if tracking => Some(NeedsResync {
                since_unix_ms: standing.since_ms,
                reason: standing.verdict.reason.clone(),
            }),
            None => None,
        };
        GroupStatus {
            name: group.name.clone(),
            id: group.id.0,
            nqn: config.nqn.clone(),
            state: standing.verdict.state,
            since_unix_ms: standing.since_ms,
            reason: standing.verdict.reason.clone(),
            protected: self.evidence.protected(group),
            needs_resync,
            copies: config.copies,
            period_ms: group.period_ns / 1_000_000,
            timestamps: self.timing.of(config.timestamps, self.evidence.now),
            apply: apply(board.role, group),
            sets: marks(group),
            consistency_point: group.applied_cut_ns.filter(|_| group.applied != SetId(0)).map(
                |cut| ConsistencyPoint { set: group.applied.0, time_unix_ms: cut / 1_000_000 },
            ),
            recovery_point_ms: group.recovery_ns(now_ns).map(|ns| ns as f64 / 1e6),
            backlog_bytes: self.backlog_bytes(group),
            backlog_sets: group.history.pending(match board.role {
                Role::Primary => ProtoState::Received,
                Role::Secondary => ProtoState::Applied,
            }),
            unreplicated: config.unreplicated.iter().map(|volume| volume.name.clone()).collect(),
            totals: self.totals(group),
            boundary_hold_ns: Summary::from(&group.hold_ns),
            write_latency_ns: Summary::from(&board.write_latency_ns),
            recovery_point_us: Summary::from(&group.recovery_us),
        }
    }

    fn config(&self, group: &GroupBoard) -> &Group {
        &self.evidence.mover.groups[group.index]
    }

    fn backlog_bytes(&self, group: &GroupBoard) -> u64 {
        let volumes = &self.config(group).volumes;
        let ours = |id: &VolumeId| volumes.iter().any(|volume| volume.id == id.0);
        let retained = self.snapshots().filter_map(|snapshot| snapshot.primary.as_ref());
        let retained = retained.flat_map(|primary| &primary.retained_bytes);
        let kept: u64 = retained.filter(|(id, _)| ours(id)).map(|(_, bytes)| bytes).sum();
        kept + group.secondary_shards.values().map(|view| view.backlog_bytes).sum::<u64>()
    }

    fn snapshots(&self) -> impl Iterator<Item = &crate::runtime::messages::PollerSnapshot> {
        self.evidence.board.pollers.iter().filter_map(|poller| poller.snapshot.as_deref())
    }

    fn totals(&self, group: &GroupBoard) -> GroupTotals {
        let mut totals = GroupTotals {
            bytes_replicated: group.replicated_bytes,
            sets_formed: group.formed,
            sets_applied: group.done,
            ..GroupTotals::default()
        };
        for volume in &self.config(group).volumes {
            let counters = self.counters(VolumeId(volume.id));
            totals.acked_writes += counters.writes;
            totals.acked_bytes += counters.bytes_written;
            totals.reads += counters.reads;
            totals.host_errors += counters.errors;
        }
        // Copies are not counted by group: with one group, the usual case, that is exact.
        if self.evidence.board.groups.len() == 1 {
            let primaries = self.snapshots().filter_map(|snapshot| snapshot.primary.as_ref());
            totals.mirrored_updates = primaries.map(|primary| primary.counters.mirrored).sum();
        }
        totals
    }

    /// A volume's counts, over all pollers.
    #[must_use]
    pub fn counters(&self, id: VolumeId) -> VolumeCounters {
        let mut sum = VolumeCounters { volume: id, ..VolumeCounters::default() };
        let all = self.snapshots().flat_map(|snapshot| &snapshot.volumes);
        for counters in all.filter(|counters| counters.volume == id) {
            sum.reads += counters.reads;
            sum.writes += counters.writes;
            sum.bytes_written += counters.bytes_written;
            sum.bytes_read += counters.bytes_read;
            sum.errors += counters.errors;
        }
        sum
    }

    /// All volumes, in the configuration's order; in each group those that are not replicated last.
    #[must_use]
    pub fn volumes(&self) -> Vec<VolumeInfo> {
        let groups = self.evidence.mover.groups.iter().enumerate();
        let all = groups.flat_map(|(index, group)| {
            let pairs = group.volumes.iter().map(move |volume| self.volume(index, group, volume));
            pairs.chain(self.unreplicated(group))
        });
        all.collect()
    }

    fn volume(&self, index: usize, group: &Group, volume: &Volume) -> VolumeInfo {
        let id = VolumeId(volume.id);
        let primaries = || self.snapshots().filter_map(|snapshot| snapshot.primary.as_ref());
        let next = primaries().flat_map(|p| &p.next_seqs).find(|(known, _)| *known == id);
        // Elsewhere: the last number that a manifest named.
        let named = self.evidence.board.groups[index].history.newest(usize::MAX).find_map(|set| {
            set.facts.iter().find(|facts| facts.volume == id).map(|facts| facts.last.0)
        });
        let retained = primaries().flat_map(|p| &p.retained_bytes).find(|(known, _)| *known == id);
        // A mover of a site opens what lies there.
        let here = self.evidence.mover.mover.role;
        let fencing = |site| self.fencing.get(&id).filter(|_| here == site).cloned();
        VolumeInfo {
            group: group.name.clone(),
            name: volume.name.clone(),
            replicated: true,
            id: volume.id,
            nsid: volume.nsid,
            block_bytes: volume.block_bytes,
            size_mib: volume.size_mib,
            uuid: volume.uuid.to_string(),
            nguid: volume.nguid.to_string(),
            base: disk_words(&volume.base),
            mover: volume.mover.clone(),
            poller: volume.poller,
            target_mover: volume.target.mover.clone(),
            target_poller: volume.target.poller,
            target_base: disk_words(&volume.target.base),
            last_seq: next.map_or(named.unwrap_or(0), |(_, seq)| seq.0 - 1),
            updates: self.counters(id).writes,
            retained_bytes: retained.map_or(0, |(_, bytes)| *bytes),
            fencing: fencing(Role::Primary),
            target_fencing: fencing(Role::Secondary),
        }
    }

    /// The map volume → responsible mover (G1).
    #[must_use]
    pub fn map(&self) -> VolumeMap {
        let me = &self.evidence.mover.mover;
        let mut entries = Vec::new();
        for group in &self.evidence.mover.groups {
            for volume in &group.volumes {
                let Some(owner) = self.site.owner(VolumeId(volume.id)) else { continue };
                let core = (owner.mover.0 == me.id)
                    .then(|| me.cores.get(usize::from(owner.poller)).copied())
                    .flatten();
                entries.push(VolumeMapEntry {
                    group: group.name.clone(),
                    volume: volume.name.clone(),
                    mover: self.name(owner.mover),
                    poller: owner.poller,
                    core,
                    mirrors: self.mirrors(group, owner),
                    target_mover: volume.target.mover.clone(),
                    target_poller: volume.target.poller,
                });
            }
        }
        VolumeMap { version: self.site.map_version.0, epoch: self.site.epoch.0, entries }
    }

    /// The movers that the policy may choose copies from, with a fixed partner first.
    fn mirrors(&self, group: &Group, owner: ShardId) -> Vec<String> {
        if group.copies < 2 {
            return Vec::new();
        }
        let mut targets = self.plan.topology.mirror_targets(owner);
        targets.retain(|shard| self.site.members.contains(&shard.mover));
        let mut names: Vec<String> = targets.iter().map(|shard| self.name(shard.mover)).collect();
        if let Some(partner) = group.partners.get(&self.name(owner.mover))
            && let Some(at) = names.iter().position(|name| name == partner)
        {
            names[..=at].rotate_right(1);
        }
        names
    }

    fn name(&self, id: MoverId) -> String {
        self.plan.topology.name(id).map_or_else(|| id.to_string(), str::to_owned)
    }

    /// The pollers.
    #[must_use]
    pub fn cores(&self) -> Vec<CoreInfo> {
        let pollers = self.evidence.board.pollers.iter().zip(&self.plan.pollers);
        pollers.map(|(poller, plan)| self.core(poller, plan)).collect()
    }

    fn core(&self, poller: &PollerBoard, plan: &PollerPlan) -> CoreInfo {
        let load = poller.load();
        let snapshot = poller.snapshot.as_deref();
        let groups = &self.evidence.mover.groups;
        let name = |(group, volume): &(usize, usize)| {
            let (group, volume) = (&groups[*group], &groups[*group].volumes[*volume]);
            let here = match self.evidence.board.role {
                Role::Primary => self.site.owner(VolumeId(volume.id)) == Some(plan.shard),
                Role::Secondary => true,
            };
            here.then(|| format!("{}/{}", group.name, volume.name))
        };
        CoreInfo {
            poller: poller.shard.poller,
            core: poller.core,
            busy_percent: load.busy_percent,
            busy_cycles: snapshot.map_or(0, |s| s.busy_cycles),
            idle_cycles: snapshot.map_or(0, |s| s.idle_cycles),
            turns: snapshot.map_or(0, |s| s.turns),
            volumes: plan.volumes.iter().chain(&plan.foreign).filter_map(name).collect(),
            updates_per_second: load.updates_per_second,
            cycles_per_update: load.cycles_per_update,
            arena_used_bytes: snapshot.map_or(0, |s| s.arena_bytes.0),
            arena_bytes: snapshot.map_or(0, |s| s.arena_bytes.1),
        }
    }

    /// The movers of both sites.
    #[must_use]
    pub fn movers(&self) -> Vec<MoverInfo> {
        let mover = self.evidence.mover;
        let topology = &self.plan.topology;
        let coordinators = [Some(self.site.coordinator), topology.secondary_coordinator]
            .map(|shard| shard.map(|shard| shard.mover));
        let info = |member: crate::config::Member<'_>| {
            let id = MoverId(member.id);
            let this = member.id == mover.mover.id;
            let board = self.evidence.board;
            let states = || board.links.iter().filter(|((_, peer), _)| peer.mover == id);
            let silent = states().filter(|(_, link)| link.state == PeerState::Silent);
            // A link counts as silent after that much silence.
            let limit_ns = u64::from(mover.link.silence_ms_max) * 1_000_000;
            let silence = silent.map(|(_, link)| self.evidence.now.since(link.since) + limit_ns);
            let links = || {
                let all = self.snapshots().flat_map(|snapshot| &snapshot.links);
                all.filter(|link| link.peer.mover == id)
            };
            let rtt = links().filter(|link| link.state == PeerState::Up).map(|link| link.rtt_ns);
            MoverInfo {
                name: member.name.to_owned(),
                id: member.id,
                site: member.site.to_owned(),
                role: member.role,
                pollers: member.pollers,
                this,
                traffic: this.then(|| mover.traffic()),
                coordinator: coordinators.contains(&Some(id)),
                reachable: this || states().all(|(_, link)| link.state == PeerState::Up),
                silence_ms: silence.max().map(|ns| ns / 1_000_000),
                round_trip_us: rtt.max().map(|ns| ns / 1_000),
                retransmissions: links().map(|link| link.retransmitted).sum(),
            }
        };
        mover.members().into_iter().map(info).collect()
    }

    /// Up to `limit` sets of a group, newest first, without manifests.
    #[must_use]
    pub fn sets(&self, group: &GroupBoard, limit: usize) -> Vec<SetInfo> {
        group.history.newest(limit).map(|set| self.set_info(group, set, false)).collect()
    }

    /// One set, with its manifest where this mover knows it.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] when it is not retained.
    pub fn set(&self, group: &GroupBoard, id: u64) -> Result<SetInfo, ApiError> {
        let found = group.history.get(SetId(id)).ok_or_else(|| {
            let message = format!("this mover knows no set {id} of group {:?}", group.name);
            let ids = (group.history.newest(usize::MAX).last(), group.history.newest(1).next());
            let advice = match ids {
                (Some(first), Some(last)) => format!("it knows {} to {}", first.id.0, last.id.0),
                _ => "it knows none yet".to_owned(),
            };
            ApiError::new(ErrorCode::NotFound, message, advice)
        })?;
        Ok(self.set_info(group, found, true))
    }

    fn set_info(&self, group: &GroupBoard, set: &SetRecord, manifest: bool) -> SetInfo {
        let ms = |ns: Option<u64>| ns.map(|ns| ns / 1_000_000);
        let volumes = &self.config(group).volumes;
        let name = |id: VolumeId| {
            let known = volumes.iter().find(|volume| volume.id == id.0);
            known.map_or_else(|| id.to_string(), |volume| volume.name.clone())
        };
        let manifest = set.facts.iter().filter(|_| manifest).map(|facts| ManifestVolume {
            volume: name(facts.volume),
            first_seq: facts.first.0,
            last_seq: facts.last.0,
            voids: facts.voids.iter().map(|seq| seq.0).collect(),
            updates: facts.count(),
            bytes: facts.bytes,
            digest: format!("{:016x}", facts.digest),
        });
        SetInfo {
            group: group.name.clone(),
            id: set.id.0,
            colour: colour_name(set.id.0).to_owned(),
            state: state(set.state),
            updates: set.updates,
            bytes: set.bytes,
            opened_unix_ms: ms(set.opened_ns),
            closed_unix_ms: ms(set.cut_ns),
            confirmed_unix_ms: ms(set.confirmed_ns),
            applied_unix_ms: ms(set.applied_ns),
            hold_ns: set.hold_ns,
            manifest: manifest.collect(),
        }
    }

    /// The volume called `GROUP/VOLUME`, or `VOLUME` where that is unique.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`]; [`ErrorCode::BadRequest`] when several are meant, and of a volume that is
    /// not replicated.
    pub fn find_volume(&self, text: &str) -> Result<(&Group, &Volume), ApiError> {
        if let Some(error) = unreplicated::refusal(self.evidence.mover, text) {
            return Err(error);
        }
        let (group, name) = match text.split_once('/') {
            Some((group, name)) => (Some(group), name),
            None => (None, text),
        };
        let groups = self.evidence.mover.groups.iter();
        let groups = groups.filter(|g| group.is_none_or(|wanted| g.name == wanted));
        let all = groups.flat_map(|g| g.volumes.iter().map(move |volume| (g, volume)));
        let found: Vec<_> = all.filter(|(_, volume)| volume.name == name).collect();
        match found[..] {
            [one] => Ok(one),
            [] => Err(ApiError::new(
                ErrorCode::NotFound,
                format!("there is no volume {text:?}"),
                "setline volume list shows them all",
            )),
            _ => Err(ApiError::new(
                ErrorCode::BadRequest,
                format!("several groups have a volume {text:?}"),
                "write GROUP/VOLUME",
            )),
        }
    }

    /// The ledger of a volume from the pollers' answers, newest first (G5).
    #[must_use]
    pub fn ledger(
        &self,
        group: &Group,
        volume: &Volume,
        answers: &[LedgerAnswer],
        limit: usize,
    ) -> Vec<LedgerEntry> {
        let id = VolumeId(volume.id);
        let target = format!("{}:{}", volume.target.mover, disk_words(&volume.target.base));
        let name = format!("{}/{}", group.name, volume.name);
        let entry = |seq: u64, set: u64| LedgerEntry {
            volume: name.clone(),
            target: target.clone(),
            seq,
            set,
            kind: String::new(),
            lba: 0,
            blocks: 0,
            from: "host".to_owned(),
            mirrored_to: Vec::new(),
            state: String::new(),
        };
        let mut entries = Vec::new();
        for answer in answers {
            for own in answer.own.iter().filter(|own| own.volume == id) {
                let held = own.mirrored_to.iter().all(|(_, stored)| *stored);
                entries.push(LedgerEntry {
                    kind: kind_word(own.kind).to_owned(),
                    lba: own.extent.lba,
                    blocks: own.extent.blocks,
                    mirrored_to: own
                        .mirrored_to
                        .iter()
                        .map(|(shard, _)| self.name(shard.mover))
                        .collect(),
                    state: match (own.void, own.acknowledged, held) {
                        (true, ..) => "void",
                        (_, true, _) => "done",
                        (_, false, true) => "held",
                        (_, false, false) => "mirroring",
                    }
                    .to_owned(),
                    ..entry(own.seq.0, own.set.0)
                });
            }
            for held in answer.held.iter().filter(|held| held.info.volume == id) {
                entries.push(LedgerEntry {
                    kind: kind_word(held.info.kind).to_owned(),
                    lba: held.info.extent.lba,
                    blocks: held.info.extent.blocks,
                    from: self.name(held.from.mover),
                    state: if held.void { "void" } else { "mirror" }.to_owned(),
                    ..entry(held.info.seq.0, held.info.set.0)
                });
            }
        }
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.seq));
        entries.truncate(limit);
        entries
    }

    /// The shard on this mover that coordinates its site, if any.
    #[must_use]
    pub fn coordinates(&self) -> Option<ShardId> {
        let topology = &self.plan.topology;
        let me = MoverId(self.evidence.mover.mover.id);
        let shard = match self.evidence.board.role {
            Role::Primary => Some(self.site.coordinator),
            Role::Secondary => topology.secondary_coordinator,
        };
        shard.filter(|shard| shard.mover == me)
    }
}

fn state(state: ProtoState) -> SetState {
    match state {
        ProtoState::Forming => SetState::Forming,
        ProtoState::Closing => SetState::Closing,
        ProtoState::InTransfer => SetState::InTransfer,
        ProtoState::Received => SetState::Received,
        ProtoState::Applying => SetState::Applying,
        ProtoState::Applied => SetState::Applied,
    }
}

fn marks(group: &GroupBoard) -> MarksInfo {
    let newest = |state| group.history.newest_in(state).map_or(0, |set| set.0);
    MarksInfo {
        open: group.open.0,
        closing: newest(ProtoState::Closing),
        transfer: newest(ProtoState::InTransfer),
        received: group.stored().0,
        applied: group.applied.0,
    }
}

fn apply(role: Role, group: &GroupBoard) -> ApplyState {
    if role == Role::Primary {
        return ApplyState::NotHere;
    }
    match &group.secondary {
        Some(view) if view.paused && view.at_boundary => ApplyState::Paused { set: view.applied.0 },
        Some(view) if view.paused => ApplyState::Pausing,
        _ => ApplyState::Running,
    }
}

fn kind_word(kind: UpdateKind) -> &'static str {
    match kind {
        UpdateKind::Write => "write",
        UpdateKind::WriteZeroes => "write-zeroes",
        UpdateKind::Deallocate => "deallocate",
    }
}

/// Where blocks lie, in words.
#[must_use]
pub fn disk_words(disk: &Disk) -> String {
    match disk {
        Disk::NvmePci { address, nsid, .. } => format!("nvme {address} ns {nsid}"),
        Disk::NvmeTcp { address, port, nqn, nsid } => {
            format!("nvme/tcp {address}:{port} {nqn} ns {nsid}")
        }
        Disk::VfioUser { directory, nsid, .. } => {
            format!("vfio-user {} ns {nsid}", directory.display())
        }
        Disk::File { path, .. } => format!("file {}", path.display()),
        Disk::Malloc => "memory".to_owned(),
        Disk::None => "none".to_owned(),
    }
}
