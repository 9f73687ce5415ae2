//! What can go wrong with a run, and with one request of it.

use std::fmt;

/// Why a run has no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What happened, to what.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

impl Failure {
    /// A failure with the next step.
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what, self.remedy)
    }
}

impl std::error::Error for Failure {}

/// Why a request has no good answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// It was answered, but not as it should be.
    Refused(String),
    /// The connection could not be made, or broke.
    Broken(String),
    /// No answer came in time.
    Late,
}

impl Trouble {
    /// A connection that broke for this reason.
    pub fn broken(cause: impl fmt::Display) -> Self {
        Self::Broken(cause.to_string())
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(why) => f.write_str(why),
            Self::Broken(why) => write!(f, "the connection failed: {why}"),
            Self::Late => f.write_str("no answer in time"),
        }
    }
}
