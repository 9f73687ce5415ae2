//! What the raft and apply threads tell the lease keeper.

use std::sync::Arc;

use parking_lot::Mutex;
use raft::StateRole;
use tokio::sync::Notify;

use crate::{lease::Event, machine::LeaseChange, replica::Role};

/// Lease changes that may wait for the keeper. Beyond it they are dropped, and
/// the keeper reads all leases again.
const MAX_CHANGES: usize = 1 << 16;

/// A mailbox that never makes its senders wait: the newest role, whether the
/// clock has ticked, and a bounded number of changes. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct LeaseFeed {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    // A lock because two threads write and the keeper's task reads; held for
    // appending or taking out.
    news: Mutex<News>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct News {
    leads: Option<u64>,
    /// Ticks that are not taken in before the next one stay lost.
    ticked: bool,
    /// Whether the keeper wants changes.
    following: bool,
    lost: bool,
    applied: Vec<(u64, Vec<LeaseChange>)>,
    changes: usize,
}

impl News {
    fn forget(&mut self) {
        self.lost = false;
        self.applied = Vec::new();
        self.changes = 0;
    }
}

impl LeaseFeed {
    /// The raft clock has ticked.
    pub fn tick(&self) {
        self.shared.news.lock().ticked = true;
        self.shared.wake.notify_one();
    }

    /// Role, term or leader changed. Called before any answer of the replica's that was
    /// found out in the new role; what was applied is answered without it.
    pub fn role(&self, role: &Role) {
        let leads = (role.role == StateRole::Leader).then_some(role.term);
        let mut news = self.shared.news.lock();
        if news.leads != leads {
            news.leads = leads;
            news.following = false;
            news.forget();
            self.shared.wake.notify_one();
        }
    }

    /// Entries up to `index` were applied. Called after the state database
    /// shows it and before anybody else hears of it.
    pub fn applied(&self, index: u64, changes: &[LeaseChange]) {
        if changes.is_empty() {
            return;
        }
        let mut news = self.shared.news.lock();
        if !news.following || news.lost {
            return;
        }
        if news.changes + changes.len() > MAX_CHANGES {
            news.forget();
            news.lost = true;
        } else {
            news.changes += changes.len();
            news.applied.push((index, changes.to_vec()));
        }
        self.shared.wake.notify_one();
    }

    /// The state was replaced by a snapshot.
    pub fn restored(&self) {
        let mut news = self.shared.news.lock();
        if news.following {
            news.forget();
            news.lost = true;
            self.shared.wake.notify_one();
        }
    }

    /// From now on changes are kept for the keeper, as long as this member
    /// leads. What was kept before is in the database already.
    pub fn follow(&self) {
        let mut news = self.shared.news.lock();
        news.forget();
        news.following = news.leads.is_some();
    }

    /// Waits until there may be something to take.
    pub async fn changed(&self) {
        self.shared.wake.notified().await;
    }

    /// Everything there is, in the order in which the keeper must see it.
    pub fn take(&self) -> Vec<Event> {
        let mut news = self.shared.news.lock();
        let mut events = vec![Event::Leads(news.leads)];
        if std::mem::take(&mut news.lost) {
            events.push(Event::Lost);
        }
        news.changes = 0;
        let applied = std::mem::take(&mut news.applied);
        events
            .extend(applied.into_iter().map(|(index, changes)| Event::Applied { index, changes }));
        if std::mem::take(&mut news.ticked) {
            events.push(Event::Tick);
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leader(term: u64) -> Role {
        Role { role: StateRole::Leader, term, leader_id: 1 }
    }

    fn kinds(feed: &LeaseFeed) -> String {
        let kind = |event: &Event| match event {
            Event::Leads(term) => format!("leads {}", term.unwrap_or_default()),
            Event::Lost => "lost".to_owned(),
            Event::Applied { index, changes } => format!("{} at {index}", changes.len()),
            Event::Tick => "tick".to_owned(),
            other => format!("{other:?}"),
        };
        feed.take().iter().map(kind).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn changes_are_kept_for_a_leader_that_follows_them() {
        let feed = LeaseFeed::default();
        feed.follow();
        feed.applied(1, &[LeaseChange::Gone(1)]);
        assert_eq!(kinds(&feed), "leads 0");
        feed.role(&leader(3));
        feed.applied(2, &[LeaseChange::Gone(1)]);
        assert_eq!(kinds(&feed), "leads 3");
        feed.follow();
        feed.applied(3, &[LeaseChange::Gone(1), LeaseChange::Gone(2)]);
        feed.applied(4, &[]);
        feed.applied(5, &[LeaseChange::Gone(1)]);
        assert_eq!(kinds(&feed), "leads 3, 2 at 3, 1 at 5");
        feed.applied(6, &[LeaseChange::Gone(1)]);
        feed.role(&leader(4));
        feed.applied(7, &[LeaseChange::Gone(1)]);
        assert_eq!(kinds(&feed), "leads 4", "another term begins with a reading of its own");
    }

    #[test]
    fn too_many_changes_and_a_snapshot_are_told_as_lost() {
        let feed = LeaseFeed::default();
        feed.role(&leader(1));
        feed.follow();
        let many = vec![LeaseChange::Gone(1); MAX_CHANGES];
        feed.applied(1, &many);
        feed.applied(2, &[LeaseChange::Gone(1)]);
        feed.applied(3, &[LeaseChange::Gone(1)]);
        assert_eq!(kinds(&feed), "leads 1, lost");
        feed.applied(4, &many);
        assert_eq!(kinds(&feed), format!("leads 1, {MAX_CHANGES} at 4"));
        feed.applied(5, &[LeaseChange::Gone(1)]);
        feed.restored();
        assert_eq!(kinds(&feed), "leads 1, lost");
    }

    #[test]
    fn ticks_that_nobody_took_in_are_one() {
        let feed = LeaseFeed::default();
        (0..5).for_each(|_| feed.tick());
        assert_eq!(kinds(&feed), "leads 0, tick");
        assert_eq!(kinds(&feed), "leads 0");
    }
}
