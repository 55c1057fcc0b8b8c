//! What may be wrong with a configuration, said so that it can be put right.

use std::collections::BTreeMap;
use std::fmt;

/// How much a fault matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The configuration must not be used.
    Error,
    /// It works, but promises less than its reader may think.
    Warning,
}

/// One fault: where, what was found, what is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Whether the configuration may be used all the same.
    pub severity: Severity,
    /// The file's name as it was given.
    pub file: String,
    /// Line and column, both from 1; `None` when the fault belongs to no place in the file.
    pub position: Option<(u32, u32)>,
    /// The key's path, such as `group[0].volume[2].nsid`; indices count from 0.
    pub key: String,
    /// What was found there.
    pub found: String,
    /// What may stand there, or what to do.
    pub allowed: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some((line, column)) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        let what = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, ": {what}: ")?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        match self.severity {
            Severity::Error => write!(f, "found {}; allowed: {}", self.found, self.allowed),
            Severity::Warning => write!(f, "{}; {}", self.found, self.allowed),
        }
    }
}

/// Where the keys of a file stand.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// The file's name as it was given.
    pub file: String,
    /// Line and column, both from 1, by key path.
    pub positions: BTreeMap<String, (u32, u32)>,
}

impl Source {
    /// The position of `key`, or of the nearest table around it.
    #[must_use]
    pub fn position(&self, key: &str) -> Option<(u32, u32)> {
        let mut path = key;
        loop {
            if let Some(&position) = self.positions.get(path) {
                return Some(position);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }

    /// An error at `key`.
    #[must_use]
    pub fn error(&self, key: &str, found: String, allowed: String) -> Fault {
        Fault {
            severity: Severity::Error,
            file: self.file.clone(),
            position: self.position(key),
            key: key.to_owned(),
            found,
            allowed,
        }
    }

    /// A warning at `key`.
    #[must_use]
    pub fn warning(&self, key: &str, found: String, advice: String) -> Fault {
        Fault { severity: Severity::Warning, ..self.error(key, found, advice) }
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{file}: cannot be read: {error}")]
    Read {
        /// The file's name as it was given.
        file: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// The file holds faults: every one of them, and the warnings beside them, in file order.
    #[error("{}", list(.0))]
    Faults(Vec<Fault>),
}

fn list(faults: &[Fault]) -> String {
    faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("\n")
}
