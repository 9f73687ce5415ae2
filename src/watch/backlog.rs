//! Which pages of the history are to be read next.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use super::WatchId;

/// The watches that wait for pages, by the revision they go on from. Those who
/// go on from the same one are served by one page; a page serves also those
/// who go on from within it. Whoever waits longest is next.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    groups: BTreeMap<u64, Group>,
    /// Tickets of the groups that are not being read for, with their revision.
    queue: BTreeSet<(u64, u64)>,
    /// From where pages are being read.
    reading: BTreeSet<u64>,
    last_ticket: u64,
}

#[derive(Debug, Default)]
struct Group {
    /// None while a page is being read for it.
    ticket: Option<u64>,
    watches: BTreeSet<WatchId>,
}

impl Backlog {
    pub fn add(&mut self, next: u64, id: WatchId) {
        let group = self.groups.entry(next).or_default();
        group.watches.insert(id);
        if group.ticket.is_none() && !self.reading.contains(&next) {
            self.queue_group(next);
        }
    }

    pub fn remove(&mut self, next: u64, id: WatchId) {
        let Some(group) = self.groups.get_mut(&next) else { return };
        group.watches.remove(&id);
        if group.watches.is_empty() {
            self.take(next..next + 1);
        }
    }

    /// From where to read next.
    pub fn first(&self) -> Option<u64> {
        self.queue.first().map(|(_, next)| *next)
    }

    /// How many pages are being read.
    pub fn reads(&self) -> usize {
        self.reading.len()
    }

    pub fn is_reading(&self, from: u64) -> bool {
        self.reading.contains(&from)
    }

    /// A page is being read.
    pub fn begin(&mut self, from: u64) {
        self.reading.insert(from);
        if let Some(ticket) = self.groups.get_mut(&from).and_then(|group| group.ticket.take()) {
            self.queue.remove(&(ticket, from));
        }
    }

    /// A page has been read; whoever it was for waits again until taken.
    pub fn end(&mut self, from: u64) {
        self.reading.remove(&from);
        if self.groups.get(&from).is_some_and(|group| group.ticket.is_none()) {
            self.queue_group(from);
        }
    }

    /// Takes out everybody who goes on from within these revisions.
    pub fn take(&mut self, revisions: Range<u64>) -> Vec<WatchId> {
        if revisions.is_empty() {
            return Vec::new();
        }
        let starts: Vec<u64> = self.groups.range(revisions).map(|(next, _)| *next).collect();
        let mut taken = Vec::new();
        for next in starts {
            let Some(group) = self.groups.remove(&next) else { continue };
            if let Some(ticket) = group.ticket {
                self.queue.remove(&(ticket, next));
            }
            taken.extend(group.watches);
        }
        taken
    }

    fn queue_group(&mut self, next: u64) {
        let Some(group) = self.groups.get_mut(&next) else { return };
        self.last_ticket += 1;
        group.ticket = Some(self.last_ticket);
        self.queue.insert((self.last_ticket, next));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(watch: i64) -> WatchId {
        WatchId { stream: 1, watch }
    }

    #[test]
    fn those_at_one_revision_share_a_page() {
        let mut backlog = Backlog::default();
        (0..3).for_each(|watch| backlog.add(7, id(watch)));
        backlog.add(9, id(3));
        backlog.add(20, id(4));
        assert_eq!(backlog.first(), Some(7));
        backlog.begin(7);
        backlog.add(7, id(5));
        assert_eq!(backlog.first(), Some(9), "7 is being read");
        backlog.end(7);
        assert_eq!(backlog.take(7..20), [0, 1, 2, 5, 3].map(id));
        assert_eq!(backlog.first(), Some(20));
    }

    #[test]
    fn who_waits_longest_is_next() {
        let mut backlog = Backlog::default();
        backlog.add(9, id(1));
        backlog.add(5, id(2));
        backlog.begin(9);
        backlog.end(9);
        assert_eq!(backlog.take(9..10), [id(1)]);
        backlog.add(1, id(1));
        assert_eq!(backlog.first(), Some(5));
        backlog.remove(5, id(2));
        assert_eq!(backlog.first(), Some(1));
        backlog.remove(1, id(1));
        assert_eq!(backlog.first(), None);
    }
}
