//! `setline epoch show`: what each site has agreed on, and how far each mover is (F5, P2).

use std::collections::BTreeMap;

use serde::Serialize;

use super::CliError;
use super::output::{Printer, number, text, verdict};
use super::reach::Reach;
use super::units::{ago, now_unix_ms};
use crate::control::client::Client;
use crate::control::model::{ClusterRecord, Status};

/// A site's epoch.
#[derive(Debug, Serialize)]
struct SiteEpoch {
    site: String,
    /// Why the membership never changes; none where it follows the record.
    fixed: Option<String>,
    /// The newest record that a mover knows; none where none does.
    record: Option<ClusterRecord>,
    /// Whether as many movers may fail as there are spare copies, as far as any mover knows.
    whole: bool,
    movers: Vec<MoverEpoch>,
}

/// How far a mover is.
#[derive(Debug, Serialize)]
struct MoverEpoch {
    mover: String,
    /// The epoch that it acts in.
    epoch: u32,
    /// The version of the map that it acts by.
    map_version: u32,
    /// Whether it hears the store.
    hears_store: bool,
}

/// Shows the epoch of every site whose movers answer.
pub(super) fn show(out: &mut Printer, reach: &Reach) -> Result<(), CliError> {
    let mut sites: BTreeMap<String, SiteEpoch> = BTreeMap::new();
    for (_, status) in reach.all(Client::status)? {
        let Status { mover, site, epoch, map_version, cluster, .. } = status;
        let entry = sites.entry(site.clone()).or_insert_with(|| SiteEpoch {
            site,
            fixed: cluster.fixed.clone(),
            record: None,
            whole: false,
            movers: Vec::new(),
        });
        let newest = entry.record.as_ref().map(|record| record.revision);
        if cluster.record.as_ref().map(|record| record.revision) > newest {
            entry.record = cluster.record;
            entry.whole = cluster.whole;
        }
        let hears_store = cluster.available;
        entry.movers.push(MoverEpoch { mover, epoch, map_version, hears_store });
    }
    let sites: Vec<SiteEpoch> = sites.into_values().collect();
    if out.is_json() {
        return Ok(out.json(&sites)?);
    }
    sites.iter().try_for_each(|site| print(out, site))
}

fn list(ids: &[u16]) -> String {
    ids.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

fn print(out: &mut Printer, site: &SiteEpoch) -> Result<(), CliError> {
    let Some(record) = &site.record else {
        return Ok(out.line(&format!("site {}: nothing agreed on is known", site.site))?);
    };
    let state = match (&site.fixed, site.whole) {
        (Some(fixed), _) => format!("it never changes: {fixed}"),
        (None, true) => "whole".to_owned(),
        (None, false) => format!("not whole, {} failed since it was", record.failures),
    };
    let state = match record.lost.len() {
        0 => state,
        1 => format!("{state}; group {} has lost updates", record.lost[0]),
        _ => format!("{state}; groups {} have lost updates", list(&record.lost)),
    };
    let title =
        format!("site {}: epoch {}, map {}, {state}", site.site, record.epoch, record.map_version);
    let rows = site.movers.iter().map(|mover| {
        let since = record.members.iter().position(|name| *name == mover.mover);
        let since = since.and_then(|at| record.since.get(at));
        let current = mover.epoch == record.epoch;
        vec![
            text(&mover.mover),
            since.map_or_else(|| text("no member"), |since| number(*since)),
            verdict(mover.epoch.to_string(), current),
            number(mover.map_version),
            verdict(if mover.hears_store { "yes" } else { "no" }.to_owned(), mover.hears_store),
        ]
    });
    let head = ["mover", "member since epoch", "acts in epoch", "by map", "hears the store"];
    out.table(&title, &head, rows.collect())?;
    if !record.excluded.is_empty() {
        let rows = record.excluded.iter().map(|excluded| {
            let when = ago(excluded.since_unix_ms, now_unix_ms());
            vec![text(&excluded.mover), number(excluded.epoch), text(when), text(&excluded.reason)]
        });
        out.table("excluded", &["mover", "by epoch", "when", "why"], rows.collect())?;
    }
    Ok(())
}
