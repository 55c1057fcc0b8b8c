//! The block devices under a mover: volumes' bases or targets, the set journal, and the taps that
//! hosts see.
//!
//! Made on the app thread before pollers start, removed after they have ended. A device that does
//! not fit its volume (block size, length) is refused with what was found: it would be written
//! over otherwise. What pollers do with devices is theirs (`poller`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::fence::{self, Fence, FenceError, Victims};
use super::parts::{JournalParts, TapOwner, VolumeParts};
use super::plan::{HOST_PAYLOAD_BYTES_MAX, Plan, PollerPlan, fixed_because};
use crate::config::{Disk, FileEngine, Mover, Role, Uuid, Volume};
use crate::control::model;
use crate::control::unreplicated::BaseSize;
use crate::proto::membership::SiteRecord;
use crate::proto::types::{MoverId, Nanos, VolumeId};
use crate::spdk::address::Address;
use crate::spdk::base::{Base, HostIdentity};
use crate::spdk::bdev::{Bdev, Geometry};
use crate::spdk::error::Error;
use crate::spdk::op::Pump;
use crate::spdk::subsystem::Subsystems;
use crate::spdk::tap::{TapConfig, TapVolume};

/// Longest write-zeroes and deallocation that a tap hands on, in blocks: NVMe's own bound for
/// write-zeroes (16 bits, zero-based).
const ZEROES_BLOCKS_MAX: u32 = 1 << 16;
/// Block size of a journal on a file or in memory.
const JOURNAL_BLOCK_BYTES: u32 = 4096;
/// Pollers' parts of the journal begin at multiples of this, so that none shares a flash page or
/// file extent with its neighbour.
const JOURNAL_PART_ALIGN: u64 = 1 << 20;

/// Why a block device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// SPDK could not open it.
    #[error("{what} on {disk}: {source}; see the lines of SPDK's log before this one")]
    Open {
        /// What it is for.
        what: String,
        /// Where it lies.
        disk: String,
        /// What SPDK said.
        source: Error,
    },
    /// The controller has no such namespace.
    #[error("{what} on {disk}: the controller has no namespace {nsid}, but {found}")]
    Namespace {
        /// What it is for.
        what: String,
        /// Where it lies.
        disk: String,
        /// What was asked for.
        nsid: u32,
        /// What it has.
        found: String,
    },
    /// It has another block size.
    #[error(
        "{what} on {disk}: its blocks have {found} bytes, {wanted} are configured; set block_bytes = {found}"
    )]
    BlockSize {
        /// What it is for.
        what: String,
        /// Where it lies.
        disk: String,
        /// Its block size.
        found: u32,
        /// The configured one.
        wanted: u32,
    },
    /// It is too short.
    #[error(
        "{what} on {disk}: it has {found} bytes, {wanted} are needed; enlarge it, or lower size_mib"
    )]
    Length {
        /// What it is for.
        what: String,
        /// Where it lies.
        disk: String,
        /// Its length in bytes.
        found: u64,
        /// What is needed, in bytes.
        wanted: u64,
    },
    /// Other movers could not be kept from it.
    #[error(transparent)]
    Fence(#[from] FenceError),
}

/// The block devices of a mover, in use.
#[derive(Debug)]
pub struct Volumes {
    /// The block device of each volume whose blocks this mover writes, or may come to write; none for
    /// write-only legs.
    bdevs: BTreeMap<VolumeId, Option<(String, Geometry)>>,
    /// The taps by the index that their commands carry, with their volumes: this mover's own, and
    /// those of other primary movers, so that hosts find every volume here (P3).
    taps: Vec<(TapVolume, VolumeId)>,
    /// The block devices of volumes that are not replicated and that this mover offers, by UUID: hosts
    /// have them as they are, and pollers know nothing of them (G11).
    unreplicated: BTreeMap<Uuid, (String, Geometry)>,
    journal: Option<(String, Geometry)>,
    fence: Fence,
}

/// Makes block devices; remembers controllers, of which several volumes may use namespaces.
struct Opener<'a> {
    subsystems: &'a Subsystems,
    host: HostIdentity,
    controllers: BTreeMap<String, Vec<String>>,
}

impl Volumes {
    /// Makes everything that `mover` needs in its life `incarnation`. On the app thread. Nothing may be
    /// written before [`Self::join`].
    ///
    /// # Errors
    /// [`VolumeError`]; what was made before goes with `subsystems`.
    pub fn open(
        mover: &Mover,
        plan: &Plan,
        subsystems: &Subsystems,
        incarnation: u64,
        pump: Pump<'_>,
    ) -> Result<Self, VolumeError> {
        let host = host_identity(mover);
        let fence = Fence::new(MoverId(mover.mover.id), incarnation, host.id);
        let mut opener = Opener { subsystems, host, controllers: BTreeMap::new() };
        let mut volumes = Self {
            bdevs: BTreeMap::new(),
            taps: Vec::new(),
            unreplicated: BTreeMap::new(),
            journal: None,
            fence,
        };
        let at_primary = mover.mover.role == Role::Primary;
        // A volume that can change its mover is the same at each of them, so that a host which takes
        // another path finds what it was told: no mover can compare and write at once for another.
        let bound = fixed_because(mover).is_some();
        for (group, index) in plan.pollers.iter().flat_map(|poller| &poller.volumes) {
            let (group, volume) = (&mover.groups[*group], &mover.groups[*group].volumes[*index]);
            let disk = if at_primary { &volume.base } else { &volume.target.base };
            let what = format!("volume {}/{}", group.name, volume.name);
            let name = format!("{}{}", if at_primary { "base" } else { "target" }, volume.id);
            let need =
                Need { what, block_bytes: Some(volume.block_bytes), bytes: volume.size_mib << 20 };
            let bdev = opener.open(&name, disk, &need, &mut *pump)?;
            let id = VolumeId(volume.id);
            match (&bdev, disk.nsid().filter(|_| disk.shared())) {
                (Some((bdev, _)), Some(nsid)) => volumes.fence.open(id, bdev, nsid, &mut *pump)?,
                (Some(_), None) if disk.shared() => {
                    volumes.fence.bind(id, "movers share it, and a file has no reservations");
                }
                (Some(_), None) => volumes.fence.bind(id, "no other mover reaches it"),
                (None, _) => {}
            }
            if at_primary {
                let write_cache = bdev.as_ref().is_some_and(|(_, geometry)| geometry.write_cache);
                volumes.add_tap(&need.what, volume, write_cache || !bound, bound)?;
            }
            volumes.bdevs.insert(VolumeId(volume.id), bdev);
        }
        for (group, index) in plan.pollers.iter().flat_map(|poller| &poller.foreign) {
            let (group, volume) = (&mover.groups[*group], &mover.groups[*group].volumes[*index]);
            let what = format!("volume {}/{}", group.name, volume.name);
            // What is under it is the responsible mover's to know: a host that takes this path
            // flushes, and the flush goes there.
            volumes.add_tap(&what, volume, true, false)?;
            if bound {
                continue;
            }
            // This mover may take it over.
            let name = format!("base{}", volume.id);
            let need =
                Need { what, block_bytes: Some(volume.block_bytes), bytes: volume.size_mib << 20 };
            let bdev = opener.open(&name, &volume.base, &need, &mut *pump)?;
            let id = VolumeId(volume.id);
            if let (Some((bdev, _)), Some(nsid)) = (&bdev, volume.base.nsid()) {
                volumes.fence.open(id, bdev, nsid, &mut *pump)?;
            }
            volumes.bdevs.insert(id, bdev);
        }
        for (group, volume) in mover.unreplicated_here() {
            let need = Need {
                what: format!("unreplicated volume {}/{}", group.name, volume.name),
                block_bytes: volume.block_bytes,
                bytes: volume.size_mib.unwrap_or(0) << 20,
            };
            let name = format!("unreplicated{}n{}", group.id, volume.nsid);
            // No reservation is taken there: hosts write by any mover that reaches it.
            if let Some(bdev) = opener.open(&name, &volume.base, &need, &mut *pump)? {
                volumes.unreplicated.insert(volume.uuid, bdev);
            }
        }
        if let Some(journal) = &mover.journal {
            let what = "the set journal".to_owned();
            let need = Need { what, block_bytes: None, bytes: journal.size_mib << 20 };
            volumes.journal = opener.open("journal", &journal.disk, &need, pump)?;
        }
        Ok(volumes)
    }

    /// Keeps movers that do not join them from writing the bases of `volumes`, as far as they can be
    /// fenced.
    ///
    /// # Errors
    /// [`FenceError`]; nothing may be written then.
    pub fn join(
        &mut self,
        volumes: impl Fn(VolumeId) -> bool,
        pump: Pump<'_>,
    ) -> Result<(), FenceError> {
        let mine: Vec<VolumeId> = self.bdevs.keys().copied().filter(|id| volumes(*id)).collect();
        self.fence.join(&mine, pump)
    }

    /// Begins to keep everybody but the members of an epoch, in the lives that are members, from the base
    /// of a volume that this mover takes over (invariant 4). [`Self::fences`] says what comes of it.
    /// False: there is nothing that could be written.
    pub fn take_over(&mut self, volume: VolumeId, members: &BTreeMap<MoverId, u64>) -> bool {
        let write_only = self.bdevs.get(&volume).is_some_and(Option::is_none);
        if !write_only {
            self.fence.begin(volume, Some(Victims::AllBut(members.clone())));
        }
        !write_only
    }

    /// Goes on with what [`Self::take_over`] has begun; never waits.
    pub fn fences(&mut self, now: Nanos) -> Vec<(VolumeId, fence::Fencing)> {
        self.fence.poll(now)
    }

    /// Whether any base is being fenced.
    #[must_use]
    pub fn is_fencing(&self) -> bool {
        self.fence.is_busy()
    }

    /// Shows `volume` to hosts, as every mover does: the same identity and size.
    fn add_tap(
        &mut self,
        what: &str,
        volume: &Volume,
        write_cache: bool,
        compare_and_write: bool,
    ) -> Result<(), VolumeError> {
        let config = TapConfig {
            name: format!("volume{}", volume.id),
            index: self.taps.len() as u32,
            uuid: volume.uuid.0,
            block_bytes: volume.block_bytes,
            blocks: volume.blocks(),
            write_cache,
            compare_and_write,
            max_transfer_blocks: HOST_PAYLOAD_BYTES_MAX as u32 / volume.block_bytes,
            max_zeroes_blocks: ZEROES_BLOCKS_MAX,
        };
        let tap = TapVolume::create(&config).map_err(|source| VolumeError::Open {
            what: what.to_owned(),
            disk: "its tap".to_owned(),
            source,
        })?;
        self.taps.push((tap, VolumeId(volume.id)));
        Ok(())
    }

    /// The name of the tap's block device of volume `id`: what its namespace is made of.
    #[must_use]
    pub fn tap_name(&self, id: VolumeId) -> Option<&str> {
        self.taps.iter().find(|(_, volume)| *volume == id).map(|(tap, _)| tap.name())
    }

    /// The name of the block device of the unreplicated volume with `uuid`, where this mover offers it.
    #[must_use]
    pub fn unreplicated_name(&self, uuid: &Uuid) -> Option<&str> {
        self.unreplicated.get(uuid).map(|(name, _)| name.as_str())
    }

    /// The sizes of unreplicated volumes that this mover offers.
    #[must_use]
    pub fn unreplicated_sizes(&self) -> BTreeMap<Uuid, BaseSize> {
        let size = |geometry: &Geometry| BaseSize {
            block_bytes: geometry.block_bytes,
            bytes: geometry.blocks * u64::from(geometry.block_bytes),
        };
        self.unreplicated.iter().map(|(uuid, (_, geometry))| (*uuid, size(geometry))).collect()
    }

    /// The volumes of one poller, in the order of its state machine's configuration. `record` is what
    /// the primary site has agreed on.
    #[must_use]
    pub fn parts(
        &self,
        mover: &Mover,
        record: &SiteRecord,
        poller: &PollerPlan,
    ) -> Vec<VolumeParts> {
        let at_primary = mover.mover.role == Role::Primary;
        let all = poller.volumes.iter().chain(&poller.foreign);
        all.map(|(group, index)| (&mover.groups[*group], *index))
            .map(|(group, index)| {
                let volume = &group.volumes[index];
                let id = VolumeId(volume.id);
                let bdev = self.bdevs.get(&id).and_then(Option::as_ref);
                let owner = record.owner(id).filter(|owner| at_primary && *owner != poller.shard);
                VolumeParts {
                    id,
                    block_bytes: volume.block_bytes,
                    timestamps: group.timestamps,
                    owner,
                    bdev: bdev.map(|(name, _)| name.clone()),
                }
            })
            .collect()
    }

    /// Who serves each tap, as the poller with this plan sees it.
    #[must_use]
    pub fn tap_owners(&self, mover: &Mover, plan: &Plan, poller: &PollerPlan) -> Vec<TapOwner> {
        let place = |id: VolumeId| {
            plan.pollers.iter().find_map(|other| {
                let mut volumes = other.volumes.iter().chain(&other.foreign);
                let at = volumes.position(|(g, v)| mover.groups[*g].volumes[*v].id == id.0)?;
                Some((other.shard.poller, at as u32))
            })
        };
        let owner = |(_, id): &(TapVolume, VolumeId)| {
            let (owner, volume) = place(*id)?;
            Some(if owner == poller.shard.poller {
                TapOwner::Here(volume)
            } else {
                TapOwner::Sibling { poller: owner, volume }
            })
        };
        self.taps.iter().filter_map(owner).collect()
    }

    /// The part of the journal that the poller with this plan has; none at the primary site.
    #[must_use]
    pub fn journal_parts(
        &self,
        mover: &Mover,
        plan: &Plan,
        poller: &PollerPlan,
    ) -> Option<JournalParts> {
        let (bdev, geometry) = self.journal.as_ref()?;
        let bytes = mover.journal.as_ref().map_or(0, |journal| journal.size_mib << 20);
        let share = bytes / plan.pollers.len() as u64 / JOURNAL_PART_ALIGN * JOURNAL_PART_ALIGN;
        let block = u64::from(geometry.block_bytes);
        let me = &mover.mover;
        Some(JournalParts {
            bdev: bdev.clone(),
            first_block: share * u64::from(poller.shard.poller) / block,
            blocks: share / block,
            // The same after every restart, and different at every mover.
            identity: Uuid::derive(&format!("{}/{}", me.site, me.name), "journal").0,
        })
    }

    /// How each base is kept from other movers.
    #[must_use]
    pub fn fencing(&self) -> BTreeMap<VolumeId, model::Fencing> {
        self.fence.fencing()
    }

    /// Leaves the bases' reservations and removes the taps; bases go with SPDK's subsystems. Hosts and pollers have let go of both.
    pub fn close(self, pump: Pump<'_>) {
        self.fence.leave(&mut *pump);
        for (tap, id) in self.taps {
            if let Err(error) = tap.remove(&mut *pump) {
                tracing::warn!(volume = %id, %error, "a volume's tap stays until the process ends");
            }
        }
    }
}

/// Who `mover` is to the targets it uses. Reservations there know it by this, so it is made of what
/// never changes: its site, name and number.
#[must_use]
pub fn host_identity(mover: &Mover) -> HostIdentity {
    let me = &mover.mover;
    HostIdentity {
        nqn: format!("nqn.2026-11.io.setline:mover:{}", me.name),
        id: Uuid::derive(&format!("mover {}", me.id), &format!("{}/{}", me.site, me.name)).0,
    }
}

/// What a device must be.
struct Need {
    what: String,
    block_bytes: Option<u32>,
    bytes: u64,
}

impl Opener<'_> {
    /// Makes the block device of `disk`, or finds it; checks that it is what is needed.
    fn open(
        &mut self,
        name: &str,
        disk: &Disk,
        need: &Need,
        pump: Pump<'_>,
    ) -> Result<Option<(String, Geometry)>, VolumeError> {
        let words = crate::control::status::disk_words(disk);
        let what = need.what.clone();
        let failed = |source| VolumeError::Open { what: what.clone(), disk: words.clone(), source };
        let block_bytes = need.block_bytes.unwrap_or(JOURNAL_BLOCK_BYTES);
        let bdev = match disk {
            Disk::None => return Ok(None),
            Disk::Malloc => {
                let blocks = need.bytes / u64::from(block_bytes);
                let base = Base::Malloc { blocks, block_bytes };
                self.subsystems.create_base(name, &base, &mut *pump).map_err(failed)?;
                name.to_owned()
            }
            Disk::File { path, engine, .. } => {
                let base = match engine {
                    FileEngine::Aio => Base::Aio { path, block_bytes },
                    FileEngine::Uring => Base::Uring { path, block_bytes },
                };
                self.subsystems.create_base(name, &base, &mut *pump).map_err(failed)?;
                name.to_owned()
            }
            Disk::NvmePci { address, nsid, .. } => {
                let address = Address::Pcie(address.clone());
                self.namespace(&address, None, *nsid, need, &words, &mut *pump)?
            }
            Disk::NvmeTcp { address, port, nqn, nsid } => {
                let address = Address::Tcp(SocketAddr::new(*address, *port));
                self.namespace(&address, Some(nqn), *nsid, need, &words, &mut *pump)?
            }
            Disk::VfioUser { directory, nqn, nsid, .. } => {
                let address = Address::VfioUser(PathBuf::from(directory));
                self.namespace(&address, Some(nqn), *nsid, need, &words, &mut *pump)?
            }
        };
        let geometry = Bdev::open(&bdev, true).map_err(failed)?.geometry();
        let (what, disk) = (need.what.clone(), words);
        if let Some(wanted) = need.block_bytes.filter(|wanted| *wanted != geometry.block_bytes) {
            return Err(VolumeError::BlockSize { what, disk, found: geometry.block_bytes, wanted });
        }
        let found = geometry.blocks * u64::from(geometry.block_bytes);
        if found < need.bytes {
            return Err(VolumeError::Length { what, disk, found, wanted: need.bytes });
        }
        Ok(Some((bdev, geometry)))
    }

    /// The block device of a namespace of an NVMe controller, attaching that if it is the first.
    fn namespace(
        &mut self,
        address: &Address,
        nqn: Option<&str>,
        nsid: u32,
        need: &Need,
        words: &str,
        pump: Pump<'_>,
    ) -> Result<String, VolumeError> {
        let key = address.transport_id(nqn);
        if !self.controllers.contains_key(&key) {
            let name = format!("nvme{}", self.controllers.len());
            let namespaces = self
                .subsystems
                .attach_nvme(&name, address, nqn, Some(&self.host), pump)
                .map_err(|source| VolumeError::Open {
                    what: need.what.clone(),
                    disk: words.to_owned(),
                    source,
                })?;
            self.controllers.insert(key.clone(), namespaces);
        }
        let namespaces = self.controllers.get(&key).map_or(&[][..], Vec::as_slice);
        let suffix = format!("n{nsid}");
        let ends = |name: &&String| {
            name.strip_suffix(&suffix).is_some_and(|rest| rest.starts_with("nvme"))
        };
        namespaces.iter().find(ends).cloned().ok_or_else(|| VolumeError::Namespace {
            what: need.what.clone(),
            disk: words.to_owned(),
            nsid,
            found: namespaces.join(", "),
        })
    }
}
