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
    /// By the entry that they wait for, so that those who still wait are left alone.
    waiting: BTreeMap<u64, Vec<oneshot::Sender<()>>>,
}

impl Applied {
    /// With this entry as the last one.
    pub fn new(index: u64) -> Self {
        Self { state: Mutex::new(State { index, waiting: BTreeMap::new() }) }
    }

    /// The entries up to this one are applied, and whoever reads sees it.
    pub fn raise(&self, index: u64) {
        let due = {
            let mut state = self.state.lock();
            state.index = index;
            let later = state.waiting.split_off(&(index + 1));
            std::mem::replace(&mut state.waiting, later)
        };
        for waiter in due.into_values().flatten() {
            // It may have given up.
            let _gone = waiter.send(());
        }
    }

    /// Returns once this entry is applied.
    pub async fn reaches(&self, index: u64) {
        let applied = {
            let mut state = self.state.lock();
            if state.index >= index {
                return;
            }
            let (waiter, applied) = oneshot::channel();
            state.waiting.entry(index).or_default().push(waiter);
            applied
        };
        // Only this holds senders, and drops none that it has not used.
        let _raised = applied.await;
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
}
