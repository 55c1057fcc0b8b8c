//! What the movers of a site agree on, and its form in the store: one JSON document.
//!
//! Read strictly: a document of another version, or with a field that this version does not know,
//! is refused rather than half understood, because whoever acts on it writes volumes.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::proto::types::{Epoch, MoverId, VolumeId};

/// Version of the document.
const FORMAT: u64 = 1;

/// What a site agrees on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteRecord {
    /// The membership epoch.
    pub epoch: Epoch,
    /// The members of that epoch.
    pub members: BTreeMap<MoverId, Member>,
    /// Version of the assignment.
    pub map_version: u32,
    /// Who is responsible for each volume.
    pub owners: BTreeMap<VolumeId, MoverId>,
    /// Movers that were excluded and have not come back as new.
    pub excluded: BTreeMap<MoverId, Exclusion>,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// The life that is a member: the count of its starts. None while it has not been heard of.
    pub incarnation: Option<u64>,
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
    map: Map,
    excluded: BTreeMap<u16, Exclusion>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Map {
    version: u32,
    owners: BTreeMap<u32, u16>,
}

impl SiteRecord {
    /// The document's text.
    #[must_use]
    pub fn to_json(&self) -> String {
        let document = Document {
            format: FORMAT,
            epoch: self.epoch.0,
            members: self.members.iter().map(|(id, member)| (id.0, member.clone())).collect(),
            map: Map {
                version: self.map_version,
                owners: self.owners.iter().map(|(volume, mover)| (volume.0, mover.0)).collect(),
            },
            excluded: self.excluded.iter().map(|(id, why)| (id.0, why.clone())).collect(),
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
            map_version: document.map.version,
            owners: document
                .map
                .owners
                .into_iter()
                .map(|(v, m)| (VolumeId(v), MoverId(m)))
                .collect(),
            excluded: document.excluded.into_iter().map(|(id, why)| (MoverId(id), why)).collect(),
        };
        record.consistent()?;
        Ok(record)
    }

    fn consistent(&self) -> Result<(), RecordError> {
        let wrong = |what: String| Err(RecordError::Contradiction(what));
        let owners: BTreeSet<MoverId> = self.owners.values().copied().collect();
        if let Some(owner) = owners.iter().find(|owner| !self.members.contains_key(owner)) {
            return wrong(format!("mover {} is responsible and no member", owner.0));
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
                (MoverId(1), Member { name: "p1".into(), incarnation: Some(7) }),
                (MoverId(3), Member { name: "p3".into(), incarnation: None }),
            ]),
            map_version: 9,
            owners: BTreeMap::from([(VolumeId(1), MoverId(1)), (VolumeId(2), MoverId(3))]),
            excluded: BTreeMap::from([(
                MoverId(2),
                Exclusion {
                    incarnation: Some(3),
                    epoch: 4,
                    since_unix_ms: 1_800_000_000_000,
                    reason: "silent".into(),
                },
            )]),
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
            r#"{"format":1,"epoch":4,"members":{"1":{"name":"p1","incarnation":7},"3":{"name":"p3","incarnation":null}},"map":{"version":9,"owners":{"1":1,"2":3}},"excluded":{"2":{"incarnation":3,"epoch":4,"since_unix_ms":1800000000000,"reason":"silent"}}}"#
        );
    }

    #[test]
    fn a_document_of_another_version_is_refused_by_name() {
        let text = record().to_json().replace("\"format\":1", "\"format\":2");
        let error = SiteRecord::from_json(text.as_bytes()).unwrap_err();
        assert_eq!(error, RecordError::Format { found: "2".into() });
        assert!(error.to_string().contains("format 2, this version reads 1"), "{error}");
    }

    #[test]
    fn what_is_not_understood_wholly_is_not_read_at_all() {
        let text = record().to_json();
        for (from, to) in [
            ("\"epoch\":4,\"members\"", "\"epoch\":4,\"more\":1,\"members\""),
            ("\"epoch\":4,\"members\"", "\"members\""),
            ("\"format\":1,", ""),
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
        foreign.owners.insert(VolumeId(5), MoverId(8));
        let mut both = record();
        both.excluded.insert(MoverId(1), both.excluded[&MoverId(2)].clone());
        for record in [foreign, both] {
            let read = SiteRecord::from_json(record.to_json().as_bytes());
            assert!(matches!(read, Err(RecordError::Contradiction(_))), "{read:?}");
        }
    }
}
