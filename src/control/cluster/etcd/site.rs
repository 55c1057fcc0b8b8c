//! A site's keys: what they are called, what they hold, and what of it is new.

use std::collections::BTreeMap;

use etcd_client::{EventType, KeyValue};
use serde::{Deserialize, Serialize};

use super::super::{Alive, Event, Leader, Me, Revision, SiteRecord};
use crate::proto::types::MoverId;

/// The leader's key holds this.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LeaderValue {
    mover: u16,
    incarnation: u64,
}

/// Names of a site's keys.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) prefix: String,
    pub(super) record: String,
    pub(super) leader: String,
    pub(super) member: String,
    members: String,
}

impl Keys {
    pub(super) fn of(me: &Me) -> Self {
        let prefix = format!("/setline/{}/", me.site);
        let members = format!("{prefix}members/");
        Self {
            record: format!("{prefix}record"),
            leader: format!("{prefix}leader"),
            member: format!("{members}{}", me.mover.0),
            members,
            prefix,
        }
    }
}

/// What `me` writes under the leader's key.
pub(super) fn leader_value(me: &Me) -> String {
    let value = LeaderValue { mover: me.mover.0, incarnation: me.alive.incarnation };
    serde_json::to_string(&value).unwrap_or_default()
}

/// What `me` writes under its own key.
pub(super) fn member_value(me: &Me) -> String {
    serde_json::to_string(&me.alive).unwrap_or_default()
}

/// What the keys held when they were last seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    record: Option<(Revision, Vec<u8>)>,
    alive: BTreeMap<MoverId, Alive>,
    pub(super) leader: Option<Leader>,
    /// Told to the control thread at least once.
    told: bool,
}

impl Seen {
    /// Everything was read: what of it is new.
    pub(super) fn read(&mut self, keys: &Keys, all: &[KeyValue]) -> Vec<Event> {
        let mut fresh = Self::default();
        for kv in all {
            fresh.put(keys, kv);
        }
        let events = fresh.news(if self.told { Some(self) } else { None });
        fresh.told = true;
        *self = fresh;
        events
    }

    /// Something has changed: what is new.
    pub(super) fn changed(&mut self, keys: &Keys, events: &[etcd_client::Event]) -> Vec<Event> {
        let before = Self {
            record: self.record.clone(),
            alive: self.alive.clone(),
            leader: self.leader.clone(),
            told: true,
        };
        for event in events {
            let Some(kv) = event.kv() else { continue };
            match event.event_type() {
                EventType::Put => self.put(keys, kv),
                EventType::Delete => self.delete(keys, kv),
            }
        }
        self.news(Some(&before))
    }

    /// The version of the record seen last.
    pub(super) fn revision(&self) -> Revision {
        self.record.as_ref().map_or(Revision(0), |(revision, _)| *revision)
    }

    fn put(&mut self, keys: &Keys, kv: &KeyValue) {
        let key = String::from_utf8_lossy(kv.key());
        if key == keys.record {
            self.record = Some((Revision(kv.mod_revision() as u64), kv.value().to_vec()));
        } else if key == keys.leader {
            self.leader = match serde_json::from_slice::<LeaderValue>(kv.value()) {
                Ok(value) => Some(Leader {
                    mover: MoverId(value.mover),
                    incarnation: value.incarnation,
                    term: kv.create_revision() as u64,
                }),
                Err(error) => {
                    tracing::warn!(%key, %error, "somebody leads that cannot be understood");
                    None
                }
            };
        } else if let Some(id) = key.strip_prefix(&keys.members).and_then(|id| id.parse().ok()) {
            match serde_json::from_slice::<Alive>(kv.value()) {
                Ok(alive) => {
                    self.alive.insert(MoverId(id), alive);
                }
                Err(error) => tracing::warn!(%key, %error, "a member that cannot be understood"),
            }
        }
    }

    fn delete(&mut self, keys: &Keys, kv: &KeyValue) {
        let key = String::from_utf8_lossy(kv.key());
        if key == keys.record {
            self.record = None;
        } else if key == keys.leader {
            self.leader = None;
        } else if let Some(id) = key.strip_prefix(&keys.members).and_then(|id| id.parse().ok()) {
            self.alive.remove(&MoverId(id));
        }
    }

    fn news(&self, before: Option<&Self>) -> Vec<Event> {
        let mut events = Vec::new();
        if before.is_none_or(|before| before.record != self.record) {
            events.push(match &self.record {
                None => Event::Record(Revision(0), None),
                Some((revision, text)) => match SiteRecord::from_json(text) {
                    Ok(record) => Event::Record(*revision, Some(record)),
                    Err(error) => Event::BadRecord(*revision, error),
                },
            });
        }
        if before.is_none_or(|before| before.alive != self.alive) {
            events.push(Event::Alive(self.alive.clone()));
        }
        if before.is_none_or(|before| before.leader != self.leader) {
            events.push(Event::Leader(self.leader.clone()));
        }
        events
    }
}
