//! `setline assignment`, and what follows from changes of it (F3, F6).

use comfy_table::Cell;

use super::CliError;
use super::output::{Printer, number, text};
use super::reach::Reach;
use super::units::bytes;
use crate::control::client::Client;
use crate::control::model::{AssignmentInfo, Move};

/// Asks the mover that knows most: it runs the boundaries of the primary site.
pub(super) fn ask(reach: &Reach) -> Result<AssignmentInfo, CliError> {
    let knows = |info: &AssignmentInfo| {
        (info.fixed.is_none(), info.members.iter().map(|member| member.load).sum::<u64>())
    };
    let all = reach.all(Client::assignment)?.into_iter().map(|(_, info)| info);
    let best = all.max_by_key(knows);
    best.ok_or_else(|| CliError::Usage("no mover named".to_owned()))
}

/// Who has what, what an operator wants, and what moves.
pub(super) fn show(out: &mut Printer, info: &AssignmentInfo) -> Result<(), CliError> {
    if out.is_json() {
        return Ok(out.json(info)?);
    }
    let rows = info.members.iter().map(|member| {
        vec![
            text(&member.mover),
            number(member.volumes as u64),
            text(bytes(member.load)),
            text(if member.draining { "drained" } else { "" }),
        ]
    });
    let title = format!(
        "epoch {}, map {}, shared by {}{}",
        info.epoch,
        info.map_version,
        info.policy,
        if info.whole { ", whole" } else { ", not whole: nothing is moved" }
    );
    out.table(&title, &["mover", "volumes", "recent load", ""], rows.collect())?;
    if !info.pinned.is_empty() {
        let rows = info.pinned.iter().map(|pin| vec![text(&pin.volume), text(&pin.mover)]);
        out.table("placed by an operator", &["volume", "mover"], rows.collect())?;
    }
    moves(out, info)
}

/// The moves that are under way, and those that would be planned now.
pub(super) fn plan(out: &mut Printer, info: &AssignmentInfo) -> Result<(), CliError> {
    if out.is_json() {
        return Ok(out.json(info)?);
    }
    moves(out, info)
}

fn moves(out: &mut Printer, info: &AssignmentInfo) -> Result<(), CliError> {
    if let Some(fixed) = &info.fixed {
        return Ok(out.line(&format!("nothing ever moves here: {fixed}"))?);
    }
    let table = |list: &[Move]| -> Vec<Vec<Cell>> {
        list.iter().map(|m| vec![text(&m.volume), text(&m.from), text(&m.to)]).collect()
    };
    let head = ["volume", "from", "to"];
    if info.under_way.is_empty() && info.wanted.is_empty() {
        return Ok(out.line("no volume has to move")?);
    }
    if !info.under_way.is_empty() {
        let title = format!("under way for {} ms", info.under_way_ms.unwrap_or(0));
        out.table(&title, &head, table(&info.under_way))?;
    }
    if !info.wanted.is_empty() {
        out.table("to be planned", &head, table(&info.wanted))?;
    }
    Ok(())
}
