//! What operators are told of volumes that are not replicated (G11).
//!
//! Nobody is responsible for such a volume and nothing of it is numbered, so there is little to
//! tell: that it is there, who offers it, and how large it is.

use super::driver::Driver;
use super::model::{ApiError, ErrorCode, VolumeInfo};
use super::status::{View, disk_words};
use crate::config::{Group, Mover, Unreplicated};

/// The size that an open base has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseSize {
    /// Bytes per block.
    pub block_bytes: u32,
    /// Bytes in all.
    pub bytes: u64,
}

/// What a name that may stand for an unreplicated volume finds, `GROUP/VOLUME` or `VOLUME`.
fn find<'a>(mover: &'a Mover, text: &str) -> Option<(&'a Group, &'a Unreplicated)> {
    let (group, name) = match text.split_once('/') {
        Some((group, name)) => (Some(group), name),
        None => (None, text),
    };
    let groups = mover.groups.iter().filter(|g| group.is_none_or(|wanted| g.name == wanted));
    let mut all = groups.flat_map(|g| g.unreplicated.iter().map(move |volume| (g, volume)));
    all.find(|(_, volume)| volume.name == name)
}

/// Why nothing can be asked of a volume's replication: it has none. `None` for a name that stands
/// for no unreplicated volume.
pub(super) fn refusal(mover: &Mover, text: &str) -> Option<ApiError> {
    let (group, volume) = find(mover, text)?;
    let message = format!(
        "volume {}/{} is not replicated: no mover is responsible for it, and no set, ledger or \
         copy holds anything of it",
        group.name, volume.name
    );
    let advice = "setline volume list shows which volumes are";
    Some(ApiError::new(ErrorCode::BadRequest, message, advice))
}

impl View<'_> {
    /// The group's volumes that are not replicated.
    pub(super) fn unreplicated(&self, group: &Group) -> impl Iterator<Item = VolumeInfo> {
        group.unreplicated.iter().map(|volume| {
            let open = self.unreplicated.get(&volume.uuid);
            let mib = |bytes: u64| bytes >> 20;
            VolumeInfo {
                group: group.name.clone(),
                name: volume.name.clone(),
                replicated: false,
                id: 0,
                nsid: volume.nsid,
                block_bytes: open.map(|open| open.block_bytes).or(volume.block_bytes).unwrap_or(0),
                size_mib: open.map(|open| mib(open.bytes)).or(volume.size_mib).unwrap_or(0),
                uuid: volume.uuid.to_string(),
                nguid: volume.nguid.to_string(),
                base: disk_words(&volume.base),
                mover: volume.mover.clone().unwrap_or_default(),
                poller: 0,
                target_mover: String::new(),
                target_poller: 0,
                target_base: String::new(),
                last_seq: 0,
                updates: 0,
                retained_bytes: 0,
                fencing: None,
                target_fencing: None,
            }
        })
    }
}

impl Driver {
    /// Why `mover` cannot leave without taking volumes along that nobody else can offer.
    pub(super) fn keeps_unreplicated(&self, mover: &str) -> Option<ApiError> {
        let groups = self.mover.groups.iter();
        let all = groups.flat_map(|group| group.unreplicated.iter().map(move |v| (group, v)));
        let only = all.filter(|(_, volume)| volume.mover.as_deref() == Some(mover));
        let names: Vec<String> =
            only.map(|(group, volume)| format!("{}/{}", group.name, volume.name)).collect();
        if names.is_empty() {
            return None;
        }
        let names = names.join(", ");
        let message = format!("nobody else offers {names}, which is not replicated");
        let advice = format!("stop {mover} (`setline mover stop`) if hosts can do without");
        Some(ApiError::new(ErrorCode::Refused, message, advice))
    }
}
