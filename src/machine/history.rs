//! The changes of the past, for whoever follows along later.

use std::ops::Bound;

use super::{RevisionChanges, moment::Moment, record, stop::Stopped};
use crate::{
    proto::{Change, Refused},
    storage::{Family, Reader, keys},
};

/// Part of the history.
#[derive(Debug, Clone, PartialEq)]
pub struct ChangesPage {
    /// The changes, ascending.
    pub revisions: Vec<RevisionChanges>,
    /// Everything before this revision has been given, by this page or by
    /// those before it.
    pub next: u64,
    /// The store's revision at the moment that was read.
    pub revision: u64,
    /// The last compaction at that moment.
    pub compacted: u64,
}

/// The changes from a revision on; see [`View::changes`](super::View::changes).
pub(super) fn changes<R: Reader>(
    moment: &Moment<'_, R>,
    from: u64,
    max_bytes: usize,
) -> Stopped<ChangesPage> {
    let Moment { reader, revision, compacted } = *moment;
    if from < compacted {
        return Err(Refused::Compacted.into());
    }
    let mut page =
        ChangesPage { revisions: Vec::new(), next: from.max(revision + 1), revision, compacted };
    let mut bytes = 0;
    let first = Bound::Included(keys::change(from, 0).to_vec().into());
    for pair in reader.scan(Family::Changes, (first, Bound::Unbounded)) {
        let (place, value) = pair?;
        let (revision, _) = keys::change_revision(&place)?;
        let size = place.len() + value.len();
        let change: Change = record::decode(Family::Changes, &place, value)?;
        match page.revisions.last_mut() {
            Some(_) if mutant!(PageSplitsRevision) && bytes >= max_bytes => {
                page.next = revision + 1;
                break;
            }
            Some(last) if last.revision == revision => last.changes.push(change),
            Some(_) if bytes >= max_bytes => {
                page.next = revision;
                break;
            }
            _ => page.revisions.push(RevisionChanges { revision, changes: vec![change] }),
        }
        bytes += size;
    }
    Ok(page)
}
