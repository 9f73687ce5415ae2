//! Which of the watches want which of some changes.

use std::{collections::BTreeMap, sync::Arc};

use super::{Event, Events, WatchId, event::change_weight};
use crate::{machine::RevisionChanges, proto::Change};

/// Some changes, and who wants them.
#[derive(Debug, Default)]
pub(super) struct Matches {
    /// The events that somebody wants, ascending.
    events: Vec<Arc<Event>>,
    /// Who wants which of them, by their places in `events`, ascending. Changes in a
    /// row are mostly wanted by the same watches.
    groups: Vec<(Vec<WatchId>, Vec<usize>)>,
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
                found.clear();
                find(revision, &change, &mut found);
                if found.is_empty() {
                    continue;
                }
                let place = matches.events.len();
                matches.events.push(Arc::new(Event::new(revision, change)));
                match matches.groups.last_mut() {
                    Some((watches, places)) if *watches == found => places.push(place),
                    _ => matches.groups.push((std::mem::take(&mut found), vec![place])),
                }
            }
        }
        matches
    }

    /// What each watch wants, never nothing, ascending by the watch. Those who want
    /// the same as the one before share it.
    pub fn each(self) -> Vec<(WatchId, Events)> {
        let Self { events, mut groups } = self;
        if let [(watches, _)] = groups.as_mut_slice() {
            watches.sort_unstable();
            let all: Events = Arc::new(events.into_iter().collect());
            return watches.iter().map(|id| (*id, Arc::clone(&all))).collect();
        }
        let mut wanted: BTreeMap<WatchId, Vec<usize>> = BTreeMap::new();
        for (watches, places) in groups {
            for id in watches {
                wanted.entry(id).or_default().extend(&places);
            }
        }
        let mut last: (Vec<usize>, Events) = (Vec::new(), Events::default());
        let share = |(id, places): (WatchId, Vec<usize>)| {
            if last.0 != places {
                let theirs = places.iter().filter_map(|place| events.get(*place));
                last.1 = Arc::new(theirs.cloned().collect());
                last.0 = places;
            }
            (id, Arc::clone(&last.1))
        };
        wanted.into_iter().map(share).collect()
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
