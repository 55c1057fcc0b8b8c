//! What can go wrong with a request, and the exit codes of the tools.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a request was not done: a code for programs, words for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}{}", Advice(.advice))]
pub struct ApiError {
    /// The kind.
    pub code: ErrorCode,
    /// What happened, a sentence without its full stop.
    pub message: String,
    /// What to do about it; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub advice: String,
}

struct Advice<'a>(&'a str);

impl fmt::Display for Advice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, "; {}", self.0) }
    }
}

impl ApiError {
    /// An error with advice.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { code, message: message.into(), advice: advice.into() }
    }
}

/// The kinds of error, with their HTTP status ([`ErrorCode::status`]) and the tools' exit code
/// ([`ErrorCode::exit_code`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request makes no sense.
    BadRequest,
    /// There is no such group, volume, set or mover.
    NotFound,
    /// Only the site's coordinator can do this; the message names it.
    NotCoordinator,
    /// Doing it would endanger data.
    Refused,
    /// It cannot be done in the present state.
    Degraded,
    /// It was not done in time. It may still be done later.
    Timeout,
    /// The mover is starting or stopping.
    Unavailable,
    /// A defect of the program.
    Internal,
}

impl ErrorCode {
    /// The HTTP status that carries it.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::NotFound => 404,
            Self::NotCoordinator => 421,
            Self::Refused => 409,
            Self::Degraded => 424,
            Self::Timeout => 504,
            Self::Unavailable => 503,
            Self::Internal => 500,
        }
    }

    /// The exit code it becomes.
    #[must_use]
    pub const fn exit_code(self) -> ExitCode {
        match self {
            Self::BadRequest | Self::NotFound | Self::NotCoordinator => ExitCode::Usage,
            Self::Refused => ExitCode::Refused,
            Self::Degraded => ExitCode::Degraded,
            Self::Timeout => ExitCode::Timeout,
            Self::Unavailable => ExitCode::Unreachable,
            Self::Internal => ExitCode::Failure,
        }
    }
}

/// Exit codes of the tools. Scripts rely on them: a number, once given, keeps its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ExitCode {
    /// Done.
    Success = 0,
    /// It failed otherwise than below; for a check, the answer is no.
    Failure = 1,
    /// The command line makes no sense, or names what does not exist.
    Usage = 2,
    /// The configuration holds faults.
    Config = 3,
    /// No mover answers there.
    Unreachable = 4,
    /// Refused, because data would be endangered.
    Refused = 5,
    /// Done or shown, but the system is degraded.
    Degraded = 6,
    /// Not done in time.
    Timeout = 7,
    /// The other movers of the site excluded this one; started again, it joins them.
    Excluded = 8,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}
