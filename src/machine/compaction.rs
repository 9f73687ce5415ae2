//! Compaction of the key space: the past before a revision is forgotten.

use super::{leases::done, stop::Stopped, writes::Writes};
use crate::{
    proto::{Compact, Outcome, Refused},
    storage::Reader,
};

/// Forgets what was before a revision, without looking at any of it. The state
/// at the revision itself stays readable, and so do its changes.
pub(super) fn compact<R: Reader>(
    writes: &mut Writes<'_, R>,
    compact: &Compact,
) -> Stopped<Outcome> {
    let revision = compact.revision;
    if revision > writes.revision() {
        return Err(Refused::FutureRevision.into());
    }
    // A store that was never compacted has nothing before revision 0 to lose.
    if revision != 0 || writes.compacted() != 0 {
        if revision <= writes.compacted() {
            return Err(Refused::Compacted.into());
        }
        writes.compact(revision);
    }
    Ok(done())
}
