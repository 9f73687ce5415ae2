//! Why carrying out a request ends early.

use super::Ruled;
use crate::{error::Fatal, proto::Refused};

/// What ends a request before its answer: the disk, or a refusal.
#[derive(Debug)]
pub(super) enum Stop {
    Fatal(Fatal),
    Refused(Refused),
}

/// The outcome of part of a request.
pub(super) type Stopped<T> = Result<T, Stop>;

impl From<Fatal> for Stop {
    fn from(fatal: Fatal) -> Self {
        Self::Fatal(fatal)
    }
}

impl From<Refused> for Stop {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// Tells the two kinds of failure apart again.
pub(super) fn ruled<T>(outcome: Stopped<T>) -> Ruled<T> {
    match outcome {
        Ok(value) => Ok(Ok(value)),
        Err(Stop::Refused(refused)) => Ok(Err(refused)),
        Err(Stop::Fatal(fatal)) => Err(fatal),
    }
}
