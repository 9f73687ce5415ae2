//! Places for connections, and who makes room when all are taken.
//!
//! A connection without a request under way can be closed at any time, as far
//! as HTTP is concerned. So when all places are taken, whoever comes next gets
//! that of the connection that has had none for longest: those who hold
//! connections and do nothing with them cannot keep others out. Only when
//! every connection has a request under way, or has just come and may be about
//! to send one, do newcomers wait.

use std::{collections::BTreeMap, pin::pin, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep_until},
};

/// How long a connection may be without a request before it has to make room.
const GRACE: Duration = Duration::from_secs(1);

/// The places of one listener. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Slots {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    places: Arc<Semaphore>,
    grace: Duration,
    // A lock because each connection has a task; held for one insertion or removal.
    idle: Mutex<Idle>,
    became_idle: Notify,
}

/// The connections without a request, the longest idle first.
#[derive(Debug, Default)]
struct Idle {
    by_turn: BTreeMap<u64, (Instant, Arc<Notify>)>,
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
        Self::with_grace(count, GRACE)
    }

    fn with_grace(count: usize, grace: Duration) -> Self {
        Self {
            shared: Arc::new(Shared {
                places: Arc::new(Semaphore::new(count)),
                grace,
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
            // Listening before looking, so that none goes by unseen; and none
            // that came earlier counts, for which another would have to go.
            let mut became_idle = pin!(self.shared.became_idle.notified());
            became_idle.as_mut().enable();
            let due = self.push_out();
            let comes_due = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                place = places.acquire_owned() => {
                    return self.slot(place.expect("the semaphore is never closed"));
                }
                () = became_idle => {}
                () = comes_due => {}
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

    /// Tells the connection that has been idle for longest to go; or, if that
    /// was not for long, says when it may be told.
    fn push_out(&self) -> Option<Instant> {
        let mut idle = self.shared.idle.lock();
        let longest = idle.by_turn.first_entry()?;
        let due = longest.get().0 + self.shared.grace;
        if due > Instant::now() {
            return Some(due);
        }
        longest.remove().1.notify_one();
        None
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
        idle.by_turn.insert(turn, (Instant::now(), Arc::clone(&self.push)));
        standing.turn = Some(turn);
        self.shared.became_idle.notify_waiters();
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
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    async fn is_pushed_out(slot: &Slot) -> bool {
        timeout(SOON, slot.pushed_out()).await.is_ok()
    }

    #[tokio::test]
    async fn the_longest_idle_connection_makes_room() {
        let slots = Slots::with_grace(3, Duration::ZERO);
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
        let slots = Slots::with_grace(1, Duration::ZERO);
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

    #[tokio::test]
    async fn who_has_just_come_may_still_send_a_request() {
        let slots = Slots::with_grace(1, Duration::from_secs(3600));
        let only = slots.take().await;
        let mut newcomer = pin!(slots.take());
        assert!(timeout(SOON, newcomer.as_mut()).await.is_err());
        assert!(!is_pushed_out(&only).await);
        drop(only);
        newcomer.await;
    }
}
