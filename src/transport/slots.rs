//! Places for connections, and who makes room when all are taken.
//!
//! A connection without a request under way can be closed at any time, as far
//! as HTTP is concerned. So when all places are taken, whoever comes next gets
//! that of the connection that has had none for longest: those who hold
//! connections and do nothing with them cannot keep others out. Only when
//! every connection has a request under way do newcomers wait.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// The places of one listener. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Slots {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    places: Arc<Semaphore>,
    // A lock because each connection has a task; held for one insertion or removal.
    idle: Mutex<Idle>,
    became_idle: Notify,
}

/// The connections without a request, the longest idle first.
#[derive(Debug, Default)]
struct Idle {
    by_turn: BTreeMap<u64, Arc<Notify>>,
    next_turn: u64,
}

/// A connection's place, free again when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    shared: Arc<Shared>,
    // A lock because requests of HTTP/2 end in tasks of their own; held for one
    // count, and while `Shared::idle` is.
    standing: Mutex<Standing>,
    push: Arc<Notify>,
    _place: OwnedSemaphorePermit,
}

#[derive(Debug, Default)]
struct Standing {
    requests: usize,
    /// Its turn among the idle ones, when it is one.
    turn: Option<u64>,
}

impl Slots {
    pub(super) fn new(count: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                places: Arc::new(Semaphore::new(count)),
                idle: Mutex::default(),
                became_idle: Notify::new(),
            }),
        }
    }

    /// A place for a connection that has come already; waits until there is
    /// one.
    pub(super) async fn take(&self) -> Slot {
        loop {
            let places = Arc::clone(&self.shared.places);
            if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
                return self.slot(place);
            }
            self.push_out();
            tokio::select! {
                place = places.acquire_owned() => {
                    return self.slot(place.expect("the semaphore is never closed"));
                }
                () = self.shared.became_idle.notified() => {}
            }
        }
    }

    fn slot(&self, place: OwnedSemaphorePermit) -> Slot {
        let slot = Slot {
            shared: Arc::clone(&self.shared),
            standing: Mutex::default(),
            push: Arc::default(),
            _place: place,
        };
        slot.rest(&mut slot.standing.lock());
        slot
    }

    /// Tells the connection that has been idle for longest to go.
    fn push_out(&self) {
        if let Some((_, push)) = self.shared.idle.lock().by_turn.pop_first() {
            push.notify_one();
        }
    }
}

impl Slot {
    /// A request begins.
    pub(super) fn begin(&self) {
        let mut standing = self.standing.lock();
        standing.requests += 1;
        if let Some(turn) = standing.turn.take() {
            self.shared.idle.lock().by_turn.remove(&turn);
        }
    }

    /// A request has ended, with its answer.
    pub(super) fn end(&self) {
        let mut standing = self.standing.lock();
        standing.requests = standing.requests.saturating_sub(1);
        if standing.requests == 0 {
            self.rest(&mut standing);
        }
    }

    /// Returns once the place is wanted for another connection and this one has
    /// no request under way.
    pub(super) async fn pushed_out(&self) {
        loop {
            self.push.notified().await;
            if self.standing.lock().requests == 0 {
                return;
            }
        }
    }

    fn rest(&self, standing: &mut Standing) {
        let mut idle = self.shared.idle.lock();
        let turn = idle.next_turn;
        idle.next_turn += 1;
        idle.by_turn.insert(turn, Arc::clone(&self.push));
        standing.turn = Some(turn);
        self.shared.became_idle.notify_one();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(turn) = self.standing.lock().turn {
            self.shared.idle.lock().by_turn.remove(&turn);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, time::Duration};

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    async fn is_pushed_out(slot: &Slot) -> bool {
        timeout(SOON, slot.pushed_out()).await.is_ok()
    }

    #[tokio::test]
    async fn the_longest_idle_connection_makes_room() {
        let slots = Slots::new(3);
        let (first, second, third) = (slots.take().await, slots.take().await, slots.take().await);
        first.begin();
        first.end();
        third.begin();
        let mut newcomer = pin!(slots.take());
        assert!(timeout(SOON, newcomer.as_mut()).await.is_err(), "none is free yet");
        assert!(is_pushed_out(&second).await);
        assert!(!is_pushed_out(&third).await);
        drop(second);
        let fourth = newcomer.await;
        fourth.begin();
        assert_eq!(slots.shared.idle.lock().by_turn.len(), 1, "the first, which may go on");
    }

    #[tokio::test]
    async fn a_connection_with_a_request_stays_until_that_has_ended() {
        let slots = Slots::new(1);
        let only = slots.take().await;
        only.begin();
        only.begin();
        let mut newcomer = pin!(slots.take());
        assert!(timeout(SOON, newcomer.as_mut()).await.is_err());
        only.end();
        assert!(timeout(SOON, newcomer.as_mut()).await.is_err());
        assert!(!is_pushed_out(&only).await);
        only.end();
        assert!(timeout(SOON, newcomer.as_mut()).await.is_err());
        assert!(is_pushed_out(&only).await);
        drop(only);
        newcomer.await;
        assert!(slots.shared.idle.lock().by_turn.is_empty());
    }
}
