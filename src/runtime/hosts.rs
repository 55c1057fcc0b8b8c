//! Where hosts come in: the mover's NVMe-oF target (P3).
//!
//! One subsystem per group, with the same name, serial number and namespace identifiers at every
//! mover and after every restart, and with controller ids of the mover's own, so that a multipath
//! host takes all movers for one subsystem. Every mover offers every volume. Each volume is an ANA group
//! of its own, whose state tells hosts how good the path through this mover is: optimized where the
//! mover is responsible for the volume, non-optimized elsewhere, where its commands take the detour
//! through the responsible one. Volumes that are not replicated stand beside them as namespaces straight
//! over their bases, optimized at each mover that offers them (G11). Made and changed on the app thread;
//! pollers serve the connections.

use std::net::SocketAddr;

use super::plan::HOST_PAYLOAD_BYTES_MAX;
use super::volumes::Volumes;
use crate::config::{Group, Listener, Mover, Role};
use crate::proto::types::VolumeId;
use crate::spdk::address::Address;
use crate::spdk::error::Error;
use crate::spdk::nvmf::{
    AnaState, GroupFactory, NamespaceConfig, Subsystem, SubsystemConfig, Target, TransportConfig,
    TransportKind,
};
use crate::spdk::op::Pump;

/// Controller ids that NVMe-oF allows: 1 to FFEFh (NVMe over Fabrics, "Connect command").
const CNTLID_MAX: u16 = 0xffef;
/// Data buffers of the TCP transport, shared by all pollers, and kept by each.
const TCP_BUFFERS: (u32, u32) = (256, 16);

/// Why hosts cannot come in.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}; see the lines of SPDK's log before this one")]
pub struct HostsError {
    /// What was tried.
    what: String,
    /// What SPDK said.
    source: Error,
}

/// The target, with its transports; hosts cannot connect yet.
#[derive(Debug)]
pub struct Hosts {
    target: Target,
    offers: Vec<Offer>,
    listening: Vec<Address>,
}

/// A group's subsystem.
#[derive(Debug)]
struct Offer {
    subsystem: Subsystem,
    addresses: Vec<Address>,
    /// Its volumes, and their namespace ids, which are their ANA groups, too.
    volumes: Vec<(VolumeId, u32)>,
}

impl Hosts {
    /// Makes the target and the transports that `mover`'s listeners need.
    ///
    /// # Errors
    /// [`HostsError`], mostly for want of hugepages.
    pub fn new(mover: &Mover, pump: Pump<'_>) -> Result<Self, HostsError> {
        let failed = |what: &str, source| HostsError { what: what.to_owned(), source };
        let groups = mover.groups.len() as u32;
        let target = Target::create(&mover.mover.name, groups.max(1))
            .map_err(|error| failed("the NVMe-oF target", error))?;
        let kinds = [
            (TransportKind::Tcp, "the NVMe/TCP transport", TCP_BUFFERS),
            (TransportKind::VfioUser, "the vfio-user transport", (0, 0)),
        ];
        for (kind, what, (shared_buffers, buffer_cache)) in kinds {
            let wanted = |listener: &Listener| match listener {
                Listener::Tcp { .. } => kind == TransportKind::Tcp,
                Listener::VfioUser { .. } => kind == TransportKind::VfioUser,
            };
            if !mover.listeners.iter().any(wanted) {
                continue;
            }
            let config = TransportConfig {
                max_io_bytes: HOST_PAYLOAD_BYTES_MAX as u32,
                shared_buffers,
                buffer_cache,
                ..TransportConfig::default()
            };
            target.add_transport(kind, &config, &mut *pump).map_err(|error| failed(what, error))?;
        }
        Ok(Self { target, offers: Vec::new(), listening: Vec::new() })
    }

    /// What pollers make their poll groups from.
    #[must_use]
    pub fn groups(&self) -> GroupFactory {
        self.target.groups()
    }

    /// Lets hosts in: subsystems, namespaces, listeners. Pollers run.
    ///
    /// # Errors
    /// [`HostsError`]; the mover must then be stopped.
    pub fn open(
        &mut self,
        mover: &Mover,
        volumes: &Volumes,
        pump: Pump<'_>,
    ) -> Result<(), HostsError> {
        for group in &mover.groups {
            let addresses = addresses(mover, group);
            for address in &addresses {
                if self.listening.contains(address) {
                    continue;
                }
                let what = format!("listening at {}", address.transport_id(None));
                let listened = self.target.listen(address);
                listened.map_err(|source| HostsError { what, source })?;
                self.listening.push(address.clone());
            }
            let subsystem =
                self.offer(mover, volumes, group, &addresses, &mut *pump).map_err(|source| {
                    HostsError { what: format!("subsystem {}", group.nqn), source }
                })?;
            let volumes = group.volumes.iter();
            let volumes = volumes.map(|volume| (VolumeId(volume.id), volume.nsid)).collect();
            self.offers.push(Offer { subsystem, addresses, volumes });
        }
        Ok(())
    }

    fn offer(
        &self,
        mover: &Mover,
        volumes: &Volumes,
        group: &Group,
        addresses: &[Address],
        pump: Pump<'_>,
    ) -> Result<Subsystem, Error> {
        let subsystem = self.target.subsystem(&SubsystemConfig {
            nqn: group.nqn.clone(),
            serial: group.serial.clone(),
            model: "setline".to_owned(),
            max_namespaces: nsids(group).max().unwrap_or(1),
            cntlids: cntlids(mover),
            ana_reporting: true,
        })?;
        subsystem.allow_any_host(true)?;
        for volume in &group.volumes {
            let Some(bdev) = volumes.tap_name(VolumeId(volume.id)) else { continue };
            subsystem.add_namespace(&NamespaceConfig {
                bdev: bdev.to_owned(),
                nsid: volume.nsid,
                nguid: volume.nguid.0,
                uuid: volume.uuid.0,
                // One group per volume: responsibility, and with it the best path, moves by volume.
                ana_group: volume.nsid,
            })?;
        }
        for volume in &group.unreplicated {
            // Where only another mover offers it, it is no namespace of this path: a host that has lost
            // the way there then fails its commands in the end instead of keeping them for ever.
            let Some(bdev) = volumes.unreplicated_name(&volume.uuid) else { continue };
            subsystem.add_namespace(&NamespaceConfig {
                bdev: bdev.to_owned(),
                nsid: volume.nsid,
                nguid: volume.nguid.0,
                uuid: volume.uuid.0,
                // Its path is as good by every mover that offers it: straight to its base.
                ana_group: volume.nsid,
            })?;
        }
        for address in addresses {
            subsystem.add_listener(address, AnaState::Optimized, &mut *pump)?;
        }
        for volume in group.volumes.iter().filter(|volume| volume.mover != mover.mover.name) {
            for address in addresses {
                let state = AnaState::NonOptimized;
                subsystem.set_ana_state(address, volume.nsid, state, &mut *pump)?;
            }
        }
        subsystem.start(pump)?;
        Ok(subsystem)
    }

    /// Tells hosts how good the paths through this mover to `volumes` are from now on. Those that are
    /// connected learn it by an asynchronous event. With [`AnaState::Inaccessible`] SPDK refuses the
    /// volume's commands with that status; those that it handed on before are left to end.
    ///
    /// # Errors
    /// [`HostsError`]; some of the states may have changed.
    pub fn set_states(
        &self,
        volumes: &[(VolumeId, AnaState)],
        pump: Pump<'_>,
    ) -> Result<(), HostsError> {
        for offer in &self.offers {
            let nsid = |id| offer.volumes.iter().find(|(known, _)| *known == id);
            let states = volumes.iter().filter_map(|(id, state)| Some((nsid(*id)?.1, *state)));
            let states: Vec<(u32, AnaState)> = states.collect();
            if states.is_empty() {
                continue;
            }
            let changed = offer.subsystem.change_ana_states(&offer.addresses, &states, &mut *pump);
            changed.map_err(|source| HostsError {
                what: "telling hosts how good paths are".to_owned(),
                source,
            })?;
        }
        Ok(())
    }

    /// Lets hosts go: their connections end, their commands have been completed. Pollers still
    /// run. What does not work is logged: the process ends anyhow.
    pub fn close(&mut self, pump: Pump<'_>) {
        for Offer { subsystem, .. } in self.offers.drain(..) {
            let stopped = subsystem.stop(&mut *pump);
            let ended = stopped.and_then(|()| subsystem.destroy(&mut *pump));
            if let Err(error) = ended {
                tracing::warn!(%error, "an NVMe-oF subsystem did not end");
            }
        }
        for address in self.listening.drain(..) {
            if let Err(error) = self.target.stop_listen(&address) {
                tracing::warn!(%error, "a listener did not end");
            }
        }
    }

    /// Ends the target; pollers have ended.
    pub fn end(self, pump: Pump<'_>) {
        if let Err(error) = self.target.destroy(pump) {
            tracing::warn!(%error, "the NVMe-oF target did not end");
        }
    }
}

/// Where hosts reach `group` at this mover.
fn addresses(mover: &Mover, group: &Group) -> Vec<Address> {
    let address = |listener: &Listener| match listener {
        Listener::VfioUser { directory } => Address::VfioUser(group.vfio_user_directory(directory)),
        Listener::Tcp { address, port } => Address::Tcp(SocketAddr::new(*address, *port)),
    };
    mover.listeners.iter().map(address).collect()
}

/// The namespace ids of all volumes in a group's subsystem.
fn nsids(group: &Group) -> impl Iterator<Item = u32> {
    let pairs = group.volumes.iter().map(|volume| volume.nsid);
    pairs.chain(group.unreplicated.iter().map(|volume| volume.nsid))
}

/// This mover's share of the controller ids: movers of one subsystem give out different ones.
fn cntlids(mover: &Mover) -> std::ops::RangeInclusive<u16> {
    let movers: Vec<u16> = mover.members_of(Role::Primary).iter().map(|m| m.id).collect();
    let share = CNTLID_MAX / movers.len().max(1) as u16;
    let place = movers.iter().position(|id| *id == mover.mover.id).unwrap_or(0) as u16;
    1 + place * share..=(place + 1) * share
}
