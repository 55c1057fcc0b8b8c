//! The configuration of one mover: a TOML file, read and judged before anything starts.
//!
//! [`Mover::load`] reads a file into plain, validated types. It reports *every* fault it finds,
//! each with line, column, key, what was found and what is allowed, because an operator who
//! fixes one fault at a time restarts a daemon ten times. Unknown keys are faults: a misspelt
//! key must not silently become a default. Things that work but promise less than the reader may
//! think (one copy, a journal that is lost at power-off) are warnings, kept apart.
//!
//! A file holds its mover's own part (`mover`, `api`, `link`, `journal`, `port`, `peer`,
//! `listener`) and the definition of all groups. Membership is fixed at start, so the groups
//! stand in every mover's file and must agree; [`cluster::cross_check`] compares files.
//! `docs/operations.md` lists the keys.
//!
//! What this module does not do: look at the machine (that is [`machine`], which the daemon asks
//! at start and `setline config check --here` on request), or act on anything.

mod address;
pub mod cluster;
mod complete;
mod fault;
mod identity;
mod limits;
pub mod machine;
mod mirror;
mod port;
mod reader;
mod rules;
mod schema;
mod timestamps;
mod traffic;
mod types;
mod unreplicated;
mod validate;

pub use address::{BadAddress, Cidr, Mac};
pub use fault::{ConfigError, Fault, Severity, Source};
pub use identity::{Nguid, Uuid};
pub use limits::*;
pub use mirror::Mirror;
pub use timestamps::Timestamps;
pub use traffic::Traffic;
pub use types::*;
pub use unreplicated::Unreplicated;

use std::path::Path;

/// A configuration that may be used, with what should be said about it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The mover's configuration: complete, with every default and derived value filled in.
    pub mover: Mover,
    /// Things that work but deserve to be known. Printed at start and kept in status.
    pub warnings: Vec<Fault>,
    /// Where each key stands in the file, for faults that are found later.
    pub source: Source,
}

impl Mover {
    /// Reads and judges the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError::Read`] when the file cannot be read, [`ConfigError::Faults`] with all faults
    /// (and the warnings beside them) when it must not be used.
    pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::Read { file: file.clone(), error })?;
        Self::parse(&file, &text)
    }

    /// Judges `text`, calling it `file` in messages.
    ///
    /// # Errors
    /// [`ConfigError::Faults`] with all faults when it must not be used.
    pub fn parse(file: &str, text: &str) -> Result<Loaded, ConfigError> {
        let (table, syntax) = toml::de::DeTable::parse_recoverable(text);
        let doc = reader::Doc::new(file, text, &table);
        for error in &syntax {
            let offset = error.span().map(|span| span.start);
            doc.syntax(offset, error.message());
        }
        // What a broken document seems to hold would only lead to follow-up faults.
        if !syntax.is_empty() {
            return Err(ConfigError::Faults(doc.into_faults().0));
        }
        let mut mover = schema::read(&doc, table.get_ref());
        complete::complete(&doc, &mut mover);
        validate::check(&doc, &mover);
        let (faults, source) = doc.into_faults();
        if faults.iter().any(|fault| fault.severity == Severity::Error) {
            return Err(ConfigError::Faults(faults));
        }
        Ok(Loaded { mover, warnings: faults, source })
    }

    /// The TOML text of this configuration, every key written out. [`Mover::parse`] of it gives
    /// the same configuration again.
    ///
    /// # Errors
    /// A path that is not UTF-8.
    pub fn render(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

#[cfg(test)]
mod tests;
