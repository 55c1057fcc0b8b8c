//! What the movers of a site agree on, and its form in the store: one JSON document.
//!
//! Read strictly: a document of another version, or with a field that this version does not know,
//! is refused rather than half understood, because whoever acts on it writes volumes.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::proto::assignment::Policy;
use crate::proto::losses::Spell;
use crate::proto::membership::{self, Plan};
use crate::proto::types::{Epoch, GroupId, MapVersion, MoverId, ShardId, VolumeId};

/// Version of the document.
const FORMAT: u64 = 4;

/// What a site agrees on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteRecord {
    /// The membership epoch.
    pub epoch: Epoch,
    /// The members of that epoch.
    pub members: BTreeMap<MoverId, Member>,
    /// The shard that runs the boundaries, or coordinates the secondary site.
    pub coordinator: ShardId,
    /// Version of the assignment.
    pub map_version: u32,
    /// The shard that is responsible for each volume.
    pub owners: BTreeMap<VolumeId, ShardId>,
    /// Volumes whose former owner failed and whose new one may not have brought them up to date yet.
    pub moved: BTreeSet<VolumeId>,
    /// The epochs since which not everything has been held by as many movers as it should be.
    pub spells: Vec<Spell>,
    /// Groups of which more movers have failed at once than they have spare copies.
    pub lost: BTreeSet<GroupId>,
    /// Movers that were excluded and have not come back as new.
    pub excluded: BTreeMap<MoverId, Exclusion>,
    /// Moves of volumes between members that are to be carried out at a boundary.
    pub plan: Option<Plan>,
    /// Members that are to be responsible for nothing: an operator drains them.
    pub draining: BTreeSet<MoverId>,
    /// Volumes that an operator has placed: they stay there while that mover is a member.
    pub pinned: BTreeMap<VolumeId, MoverId>,
    /// How the other volumes are shared.
    pub policy: Policy,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// The life that is a member: the count of its starts. None while it has not been heard of.
    pub incarnation: Option<u64>,
    /// The epoch since which this life takes part without interruption.
    pub since: u32,
}

/// How a mover was excluded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exclusion {
    /// The life that was excluded.
    pub incarnation: Option<u64>,
    /// The epoch that began with it.
    pub epoch: u32,
    /// Since when, Unix time in milliseconds.
    pub since_unix_ms: u64,
    /// Why, for people.
    pub reason: String,
}

/// Why a document is no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Another version wrote it.
    #[error(
        "the site's record has format {found}, this version reads {FORMAT}; run the version that \
         wrote it on all movers of the site"
    )]
    Format {
        /// What it says.
        found: String,
    },
    /// It is not such a document.
    #[error("the site's record cannot be read: {0}")]
    Malformed(String),
    /// It contradicts itself.
    #[error("the site's record contradicts itself: {0}")]
    Contradiction(String),
}

/// The document.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: u64,
    epoch: u32,
    members: BTreeMap<u16, Member>,
    coordinator: Place,
    map: Map,
    /// Epoch, its members, and how many of those have failed since.
    spells: Vec<(u32, u16, u16)>,
    lost: BTreeSet<u16>,
    excluded: BTreeMap<u16, Exclusion>,
    plan: Option<PlanDocument>,
    draining: BTreeSet<u16>,
    pinned: BTreeMap<u32, u16>,
    policy: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanDocument {
    version: u32,
    moves: BTreeMap<u32, Place>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Map {
    version: u32,
    owners: BTreeMap<u32, Place>,
    moved: BTreeSet<u32>,
}

/// A shard: mover and poller.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Place(u16, u8);

impl From<ShardId> for Place {
    fn from(shard: ShardId) -> Self {
        Self(shard.mover.0, shard.poller)
    }
}

impl From<Place> for ShardId {
    fn from(Place(mover, poller): Place) -> Self {
        Self { mover: MoverId(mover), poller }
    }
}

impl SiteRecord {
    /// The record that a site begins with: nobody has failed, and nothing is asked for or under way.
    #[must_use]
    pub fn first(
        epoch: Epoch,
        map_version: u32,
        coordinator: ShardId,
        members: BTreeMap<MoverId, Member>,
        owners: BTreeMap<VolumeId, ShardId>,
    ) -> Self {
        let spells = membership::SiteRecord::first_spell(epoch, members.len());
        Self {
            epoch,
            members,
            coordinator,
            map_version,
            owners,
            moved: BTreeSet::new(),
            spells,
            lost: BTreeSet::new(),
            excluded: BTreeMap::new(),
            plan: None,
            draining: BTreeSet::new(),
            pinned: BTreeMap::new(),
            policy: Policy::default(),
        }
    }

    /// The document's text.
    #[must_use]
    pub fn to_json(&self) -> String {
        let document = Document {
            format: FORMAT,
            epoch: self.epoch.0,
            members: self.members.iter().map(|(id, member)| (id.0, member.clone())).collect(),
            coordinator: self.coordinator.into(),
            map: Map {
                version: self.map_version,
                owners: self.owners.iter().map(|(v, shard)| (v.0, (*shard).into())).collect(),
                moved: self.moved.iter().map(|volume| volume.0).collect(),
            },
            spells: self.spells.iter().map(|s| (s.epoch.0, s.members, s.failures)).collect(),
            lost: self.lost.iter().map(|group| group.0).collect(),
            excluded: self.excluded.iter().map(|(id, why)| (id.0, why.clone())).collect(),
            plan: self.plan.as_ref().map(|plan| PlanDocument {
                version: plan.version.0,
                moves: plan.moves.iter().map(|(v, shard)| (v.0, (*shard).into())).collect(),
            }),
            draining: self.draining.iter().map(|mover| mover.0).collect(),
            pinned: self.pinned.iter().map(|(volume, mover)| (volume.0, mover.0)).collect(),
            policy: self.policy.name().to_owned(),
        };
        // Plain maps and numbers: this cannot fail.
        serde_json::to_string(&document).unwrap_or_default()
    }

    /// Reads the document.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn from_json(text: &[u8]) -> Result<Self, RecordError> {
        let malformed = |error: serde_json::Error| RecordError::Malformed(error.to_string());
        let value: serde_json::Value = serde_json::from_slice(text).map_err(malformed)?;
        match &value["format"] {
            serde_json::Value::Number(format) if format.as_u64() == Some(FORMAT) => {}
            serde_json::Value::Null => {
                return Err(RecordError::Malformed("it names no format".to_owned()));
            }
            found => return Err(RecordError::Format { found: found.to_string() }),
        }
        let document: Document = serde_json::from_value(value).map_err(malformed)?;
        let record = Self {
            epoch: Epoch(document.epoch),
            members: document.members.into_iter().map(|(id, m)| (MoverId(id), m)).collect(),
            coordinator: document.coordinator.into(),
            map_version: document.map.version,
            owners: document
                .map
                .owners
                .into_iter()
                .map(|(v, place)| (VolumeId(v), place.into()))
                .collect(),
            moved: document.map.moved.into_iter().map(VolumeId).collect(),
            spells: document
                .spells
                .into_iter()
                .map(|(epoch, members, failures)| Spell { epoch: Epoch(epoch), members, failures })
                .collect(),
            lost: document.lost.into_iter().map(GroupId).collect(),
            excluded: document.excluded.into_iter().map(|(id, why)| (MoverId(id), why)).collect(),
            plan: document.plan.map(|plan| Plan {
                version: MapVersion(plan.version),
                moves: plan.moves.into_iter().map(|(v, p)| (VolumeId(v), p.into())).collect(),
            }),
            draining: document.draining.into_iter().map(MoverId).collect(),
            pinned: document.pinned.into_iter().map(|(v, m)| (VolumeId(v), MoverId(m))).collect(),
            policy: Policy::from_name(&document.policy).ok_or_else(|| {
                RecordError::Contradiction(format!("its policy is {:?}", document.policy))
            })?,
        };
        record.consistent()?;
        Ok(record)
    }

    /// What the protocol needs of it.
    #[must_use]
    pub fn agreed(&self) -> membership::SiteRecord {
        membership::SiteRecord {
            epoch: self.epoch,
            map_version: MapVersion(self.map_version),
            members: self.members.keys().copied().collect(),
            since: self.members.values().map(|member| Epoch(member.since)).collect(),
            coordinator: self.coordinator,
            owners: self.owners.iter().map(|(volume, shard)| (*volume, *shard)).collect(),
            moved: self.moved.iter().copied().collect(),
            spells: self.spells.clone(),
            lost: self.lost.iter().copied().collect(),
            plan: self.plan.clone(),
        }
    }

    /// This record with what the protocol made of it for the next epoch. `joined` are the members that
    /// are not in this one; who is not in `next` is noted as excluded, at `unix_ms`, for `reason`.
    #[must_use]
    pub fn followed_by(
        &self,
        next: &membership::SiteRecord,
        joined: &BTreeMap<MoverId, Member>,
        unix_ms: u64,
        reason: &str,
    ) -> Self {
        let member = |id: &MoverId| {
            let known = self.members.get(id).or_else(|| joined.get(id))?;
            let since = next.since(*id).unwrap_or(next.epoch).0;
            Some((*id, Member { since, ..known.clone() }))
        };
        let mut excluded = self.excluded.clone();
        excluded.retain(|id, _| !next.members.contains(id));
        for (id, member) in self.members.iter().filter(|(id, _)| !next.members.contains(id)) {
            let exclusion = Exclusion {
                incarnation: member.incarnation,
                epoch: next.epoch.0,
                since_unix_ms: unix_ms,
                reason: reason.to_owned(),
            };
            excluded.insert(*id, exclusion);
        }
        Self {
            epoch: next.epoch,
            members: next.members.iter().filter_map(member).collect(),
            coordinator: next.coordinator,
            map_version: next.map_version.0,
            owners: next.owners.iter().copied().collect(),
            moved: next.moved.iter().copied().collect(),
            spells: next.spells.clone(),
            lost: next.lost.iter().copied().collect(),
            excluded,
            plan: next.plan.clone(),
            draining: self
                .draining
                .iter()
                .copied()
                .filter(|mover| next.members.contains(mover))
                .collect(),
            pinned: self.pinned.clone(),
            policy: self.policy,
        }
    }

    /// The life that is a member.
    #[must_use]
    pub fn life(&self, mover: MoverId) -> Option<u64> {
        self.members.get(&mover).and_then(|member| member.incarnation)
    }

    fn consistent(&self) -> Result<(), RecordError> {
        let wrong = |what: String| Err(RecordError::Contradiction(what));
        let owners: BTreeSet<MoverId> = self.owners.values().map(|shard| shard.mover).collect();
        if let Some(owner) = owners.iter().find(|owner| !self.members.contains_key(owner)) {
            return wrong(format!("mover {} is responsible and no member", owner.0));
        }
        if !self.members.contains_key(&self.coordinator.mover) {
            return wrong(format!(
                "mover {} coordinates and is no member",
                self.coordinator.mover.0
            ));
        }
        if let Some(plan) = &self.plan {
            let known = |(volume, to): &&(VolumeId, ShardId)| {
                self.owners.contains_key(volume) && self.members.contains_key(&to.mover)
            };
            if let Some((volume, to)) = plan.moves.iter().find(|planned| !known(planned)) {
                return wrong(format!("volume {} is to move to mover {}", volume.0, to.mover.0));
            }
        }
        let both = self.excluded.keys().find(|id| self.members.contains_key(id));
        if let Some(id) = both {
            return wrong(format!("mover {} is a member and excluded", id.0));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> SiteRecord {
        SiteRecord {
            epoch: Epoch(4),
            members: BTreeMap::from([
                (MoverId(1), Member { name: "p1".into(), incarnation: Some(7), since: 2 }),
                (MoverId(3), Member { name: "p3".into(), incarnation: None, since: 4 }),
            ]),
            coordinator: ShardId::new(1, 0),
            map_version: 9,
            owners: BTreeMap::from([
                (VolumeId(1), ShardId::new(1, 0)),
                (VolumeId(2), ShardId::new(3, 1)),
            ]),
            moved: BTreeSet::from([VolumeId(2)]),
            spells: vec![
                Spell { epoch: Epoch(3), members: 3, failures: 1 },
                Spell { epoch: Epoch(4), members: 2, failures: 0 },
            ],
            lost: BTreeSet::from([GroupId(6)]),
            excluded: BTreeMap::from([(
                MoverId(2),
                Exclusion {
                    incarnation: Some(3),
                    epoch: 4,
                    since_unix_ms: 1_800_000_000_000,
                    reason: "silent".into(),
                },
            )]),
            plan: Some(Plan {
                version: MapVersion(10),
                moves: vec![(VolumeId(1), ShardId::new(3, 0))],
            }),
            draining: BTreeSet::from([MoverId(1)]),
            pinned: BTreeMap::from([(VolumeId(2), MoverId(3))]),
            policy: Policy::RoundRobin,
        }
    }

    #[test]
    fn a_record_reads_back_the_same() {
        assert_eq!(SiteRecord::from_json(record().to_json().as_bytes()), Ok(record()));
    }

    #[test]
    fn the_document_keeps_its_form() {
        assert_eq!(
            record().to_json(),
            r#"{"format":4,"epoch":4,"members":{"1":{"name":"p1","incarnation":7,"since":2},"3":{"name":"p3","incarnation":null,"since":4}},"coordinator":[1,0],"map":{"version":9,"owners":{"1":[1,0],"2":[3,1]},"moved":[2]},"spells":[[3,3,1],[4,2,0]],"lost":[6],"excluded":{"2":{"incarnation":3,"epoch":4,"since_unix_ms":1800000000000,"reason":"silent"}},"plan":{"version":10,"moves":{"1":[3,0]}},"draining":[1],"pinned":{"2":3},"policy":"round-robin"}"#
        );
    }

    #[test]
    fn the_next_record_knows_who_left_and_who_came() {
        let now = record();
        let change = membership::Change {
            failed: &[MoverId(3)],
            joined: &[MoverId(2)],
            whole: true,
            spare: None,
            copies: &[],
        };
        let next = now.agreed().next(&change, |_| 2, |_| 1).unwrap();
        let came = Member { name: "p2".into(), incarnation: Some(4), since: 0 };
        let joined = BTreeMap::from([(MoverId(2), came.clone())]);
        let next = now.followed_by(&next, &joined, 77, "silent");
        assert_eq!(next.members[&MoverId(1)], now.members[&MoverId(1)]);
        assert_eq!(next.members[&MoverId(2)], Member { since: 5, ..came });
        assert_eq!((next.life(MoverId(2)), next.life(MoverId(3))), (Some(4), None));
        let left = &next.excluded[&MoverId(3)];
        assert_eq!((left.epoch, left.since_unix_ms, left.reason.as_str()), (5, 77, "silent"));
        assert!(!next.excluded.contains_key(&MoverId(2)), "it has come back");
        assert_eq!(next.owners[&VolumeId(2)], ShardId::new(1, 1));
        assert_eq!(next.agreed().since(MoverId(1)), Some(Epoch(2)));
        assert_eq!(SiteRecord::from_json(next.to_json().as_bytes()), Ok(next));
    }

    #[test]
    fn a_document_of_another_version_is_refused_by_name() {
        let text = record().to_json().replace("\"format\":4", "\"format\":1");
        let error = SiteRecord::from_json(text.as_bytes()).unwrap_err();
        assert_eq!(error, RecordError::Format { found: "1".into() });
        assert!(error.to_string().contains("format 1, this version reads 4"), "{error}");
    }

    #[test]
    fn what_is_not_understood_wholly_is_not_read_at_all() {
        let text = record().to_json();
        for (from, to) in [
            ("\"epoch\":4,\"members\"", "\"epoch\":4,\"more\":1,\"members\""),
            ("\"epoch\":4,\"members\"", "\"members\""),
            ("\"format\":4,", ""),
            ("\"name\":\"p1\"", "\"name\":\"p1\",\"rack\":3"),
            ("\"epoch\":4,\"members\"", "\"epoch\":-1,\"members\""),
        ] {
            assert!(text.contains(from));
            let changed = text.replacen(from, to, 1);
            let read = SiteRecord::from_json(changed.as_bytes());
            assert!(matches!(read, Err(RecordError::Malformed(_))), "{changed}: {read:?}");
        }
        assert!(SiteRecord::from_json(b"{").is_err());
    }

    #[test]
    fn a_record_that_contradicts_itself_is_refused() {
        let mut foreign = record();
        foreign.owners.insert(VolumeId(5), ShardId::new(8, 0));
        let mut led = record();
        led.coordinator = ShardId::new(2, 0);
        let mut both = record();
        both.excluded.insert(MoverId(1), both.excluded[&MoverId(2)].clone());
        for record in [foreign, led, both] {
            let read = SiteRecord::from_json(record.to_json().as_bytes());
            assert!(matches!(read, Err(RecordError::Contradiction(_))), "{read:?}");
        }
    }
}
