//! Which of the watches want which of some changes.

use std::{collections::BTreeMap, sync::Arc};

use super::{Event, Events, WatchId, event::change_weight};
use crate::{machine::RevisionChanges, proto::Change};

/// Some changes, and who wants them.
#[derive(Debug, Default)]
pub(super) struct Matches {
    /// The events that somebody wants, ascending.
    events: Vec<Arc<Event>>,
    /// Places in `events`, ascending, of what each watch wants.
    wanted: BTreeMap<WatchId, Vec<usize>>,
}

impl Matches {
    /// Asks `find` of every change who wants it.
    pub fn new(
        revisions: Vec<RevisionChanges>,
        mut find: impl FnMut(u64, &Change, &mut Vec<WatchId>),
    ) -> Self {
        let mut matches = Self::default();
        let mut found = Vec::new();
        for RevisionChanges { revision, changes } in revisions {
            for change in changes {
                find(revision, &change, &mut found);
                if found.is_empty() {
                    continue;
                }
                let place = matches.events.len();
                matches.events.push(Arc::new(Event::new(revision, change)));
                for id in found.drain(..) {
                    matches.wanted.entry(id).or_default().push(place);
                }
            }
        }
        matches
    }

    /// What each watch wants, never nothing. Those who want the same as the
    /// one before share it.
    pub fn each(self) -> impl Iterator<Item = (WatchId, Events)> {
        let Self { events, wanted } = self;
        let mut last: (Vec<usize>, Events) = (Vec::new(), Events::default());
        wanted.into_iter().map(move |(id, places)| {
            if last.0 != places {
                let theirs = places.iter().filter_map(|place| events.get(*place));
                last.1 = Arc::new(theirs.cloned().collect());
                last.0 = places;
            }
            (id, Arc::clone(&last.1))
        })
    }
}

/// Cuts changes into runs of whole revisions of about `max_bytes` each, so
/// that no notice becomes larger, nor what is held for a match.
pub(super) fn runs(revisions: Vec<RevisionChanges>, max_bytes: usize) -> Vec<Vec<RevisionChanges>> {
    let mut runs: Vec<Vec<RevisionChanges>> = Vec::new();
    let mut bytes = 0;
    for revision in revisions {
        let more = revision_weight(&revision);
        match runs.last_mut() {
            Some(run) if bytes + more <= max_bytes => {
                run.push(revision);
                bytes += more;
            }
            _ => {
                runs.push(vec![revision]);
                bytes = more;
            }
        }
    }
    runs
}

/// About how many bytes of memory the events of a revision take.
pub(super) fn revision_weight(revision: &RevisionChanges) -> usize {
    revision.changes.iter().map(change_weight).sum()
}
