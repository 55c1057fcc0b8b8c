//! Where output goes and how it looks.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use serde::Serialize;

/// How output looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Tables for people; colours on terminals only.
    Table,
    /// JSON for programs.
    Json,
}

/// Prints to one place in one format.
pub struct Printer {
    to: Box<dyn Write>,
    format: Format,
    colour: bool,
}

impl Printer {
    /// Prints to standard output, with colour if that is a terminal and `NO_COLOR` is not set.
    #[must_use]
    pub fn stdout(format: Format) -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let colour = io::stdout().is_terminal() && !plain;
        Self { to: Box::new(io::stdout()), format, colour }
    }

    /// Prints to `to`, without colour.
    #[must_use]
    pub fn to(to: Box<dyn Write>, format: Format) -> Self {
        Self { to, format, colour: false }
    }

    /// Whether output is JSON.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// One JSON document.
    ///
    /// # Errors
    /// Output cannot be written.
    pub fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut self.to, value)?;
        writeln!(self.to)
    }

    /// One JSON document on one line.
    ///
    /// # Errors
    /// Output cannot be written.
    pub fn json_line(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.to, value)?;
        writeln!(self.to)?;
        self.to.flush()
    }

    /// A line for people; nothing when output is JSON.
    ///
    /// # Errors
    /// Output cannot be written.
    pub fn line(&mut self, text: &str) -> io::Result<()> {
        if self.is_json() { Ok(()) } else { writeln!(self.to, "{text}") }
    }

    /// A table; its title goes above it.
    ///
    /// # Errors
    /// Output cannot be written.
    pub fn table(&mut self, title: &str, head: &[&str], rows: Vec<Vec<Cell>>) -> io::Result<()> {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_content_arrangement(ContentArrangement::Dynamic);
        if self.colour {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        if !head.is_empty() {
            table
                .set_header(head.iter().map(|text| Cell::new(text).add_attribute(Attribute::Bold)));
        }
        table.add_rows(rows);
        if !title.is_empty() {
            writeln!(self.to, "{title}")?;
        }
        writeln!(self.to, "{table}")
    }

    /// A table of what, how much, and (where that is known) whether it is as it must be.
    ///
    /// # Errors
    /// Output cannot be written.
    pub fn facts(
        &mut self,
        title: &str,
        rows: Vec<(String, String, Option<bool>)>,
    ) -> io::Result<()> {
        let cells = rows.into_iter().map(|(what, value, well)| {
            let value = match well {
                Some(well) => verdict(value, well).add_attribute(Attribute::Bold),
                None => text(value),
            };
            vec![text(what), value]
        });
        self.table(title, &[], cells.collect())
    }
}

/// A cell with text.
pub(super) fn text(text: impl ToString) -> Cell {
    Cell::new(text.to_string())
}

/// A cell with a number.
pub(super) fn number(number: impl ToString) -> Cell {
    Cell::new(number.to_string()).set_alignment(CellAlignment::Right)
}

/// A cell that is green when all is well and red when not.
pub(super) fn verdict(shown: impl ToString, well: bool) -> Cell {
    Cell::new(shown.to_string()).fg(if well { Color::Green } else { Color::Red })
}

/// A cell for something that may be absent.
pub(super) fn maybe<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> Cell {
    value.map_or_else(|| Cell::new("-"), |value| Cell::new(show(value)))
}

/// The cell of a set's number with its colour name, in that colour.
pub(super) fn set_cell(id: u64) -> Cell {
    if id == 0 {
        return Cell::new("-");
    }
    let name = crate::control::model::colour_name(id);
    Cell::new(format!("{id} {name}")).fg(colour(name))
}

fn colour(name: &str) -> Color {
    let (r, g, b) = match name {
        "red" => (230, 60, 60),
        "orange" => (240, 140, 40),
        "amber" => (250, 190, 40),
        "lime" => (170, 220, 50),
        "green" => (60, 180, 75),
        "teal" => (0, 150, 136),
        "cyan" => (60, 210, 230),
        "azure" => (70, 160, 250),
        "blue" => (70, 100, 230),
        "indigo" => (100, 80, 200),
        "violet" => (160, 100, 230),
        "magenta" => (230, 60, 200),
        "rose" => (250, 130, 160),
        "brown" => (160, 110, 70),
        "grey" => (150, 150, 150),
        _ => (240, 240, 240),
    };
    Color::Rgb { r, g, b }
}
