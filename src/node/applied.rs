//! How far the state of this member has come, for those who wait for an entry.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// The last entry that was applied, and who waits for a later one.
#[derive(Debug)]
pub(super) struct Applied {
    // A lock because the apply thread raises it while requests wait; held to enter
    // one, or to take out those whose entry has come.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    index: u64,
    next_ticket: u64,
    /// By the entry that they wait for, so that those who still wait are left alone,
    /// and their tickets.
    waiting: BTreeMap<(u64, u64), oneshot::Sender<()>>,
}

impl Applied {
    /// With this entry as the last one.
    pub fn new(index: u64) -> Self {
        let state = State { index, next_ticket: 0, waiting: BTreeMap::new() };
        Self { state: Mutex::new(state) }
    }

    /// The entries up to this one are applied, and whoever reads sees it.
    pub fn raise(&self, index: u64) {
        let due = {
            let mut state = self.state.lock();
            state.index = index;
            let later = state.waiting.split_off(&(index + 1, 0));
            std::mem::replace(&mut state.waiting, later)
        };
        for waiter in due.into_values() {
            // It may have given up.
            let _gone = waiter.send(());
        }
    }

    /// Whether this entry is applied.
    pub fn has(&self, index: u64) -> bool {
        self.state.lock().index >= index
    }

    /// Returns once this entry is applied. A dropped call leaves nothing behind.
    pub async fn reaches(&self, index: u64) {
        let (waiter, applied) = oneshot::channel();
        let place = {
            let mut state = self.state.lock();
            if state.index >= index {
                return;
            }
            let place = (index, state.next_ticket);
            state.next_ticket += 1;
            state.waiting.insert(place, waiter);
            Place { applied: self, place }
        };
        // A sender goes unused only with its place.
        let _raised = applied.await;
        drop(place);
    }
}

/// Takes back a place among those who wait, if it is still there.
struct Place<'a> {
    applied: &'a Applied,
    place: (u64, u64),
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.applied.state.lock().waiting.remove(&self.place);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, pin_mut};

    use super::*;

    #[test]
    fn those_whose_entry_has_come_wait_no_longer_and_the_others_do() {
        let applied = Applied::new(3);
        assert_eq!(applied.reaches(3).now_or_never(), Some(()));
        let (four, five, nine) = (applied.reaches(4), applied.reaches(5), applied.reaches(9));
        pin_mut!(four, five, nine);
        assert!(four.as_mut().now_or_never().is_none() && five.as_mut().now_or_never().is_none());
        assert!(nine.as_mut().now_or_never().is_none());
        applied.raise(5);
        assert_eq!((four.now_or_never(), five.now_or_never()), (Some(()), Some(())));
        assert!(nine.as_mut().now_or_never().is_none());
        assert_eq!(applied.state.lock().waiting.len(), 1);
        applied.raise(12);
        assert_eq!(nine.now_or_never(), Some(()));
    }

    #[test]
    fn whoever_gives_up_leaves_nothing_behind() {
        let applied = Applied::new(3);
        for _ in 0..2 {
            assert_eq!(applied.reaches(4).now_or_never(), None);
        }
        assert!(applied.state.lock().waiting.is_empty());
        assert!(applied.has(3) && !applied.has(4));
    }
}
