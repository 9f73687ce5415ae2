//! New changes that cannot be told yet.

use crate::machine::RevisionChanges;

use super::matches::revision_weight;

/// The newest changes, kept while what was before them is read: without gaps,
/// up to the store's revision as the hub knows it, or none.
#[derive(Debug, Default)]
pub(super) struct Recent {
    revisions: Vec<RevisionChanges>,
    bytes: usize,
}

impl Recent {
    /// Keeps what follows. With more than `max_bytes` all is forgotten.
    pub fn push(&mut self, revisions: Vec<RevisionChanges>, max_bytes: usize) {
        self.bytes += revisions.iter().map(revision_weight).sum::<usize>();
        self.revisions.extend(revisions);
        if self.bytes > max_bytes {
            self.clear();
        }
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Everything after `told`, if nothing between is missing.
    pub fn take_after(&mut self, told: u64) -> Vec<RevisionChanges> {
        match self.revisions.first() {
            Some(first) if first.revision <= told + 1 => {
                let mut revisions = std::mem::take(self).revisions;
                revisions.retain(|changes| changes.revision > told);
                revisions
            }
            _ => Vec::new(),
        }
    }
}
