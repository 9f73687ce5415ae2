//! The task that runs the lease keeper.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    handle::{Handle, Running},
    lease_feed::LeaseFeed,
};
use crate::{
    error::{Fatal, Rejected},
    lease::{Effect, Event, Fate, Keeper, Question, Reply},
    metrics::Metrics,
    proto::{Command, command::Op},
    replica::{self, Answer},
};

/// Questions taken in before what follows from them is carried out: they share
/// one round of confirmations.
const MAX_RUN: usize = 4096;

/// A question on its way to the keeper.
#[derive(Debug)]
pub(super) struct Asking {
    pub id: i64,
    pub question: Question,
    pub reply: oneshot::Sender<Reply>,
}

pub(super) struct LeasePump {
    keeper: Keeper,
    feed: LeaseFeed,
    questions: mpsc::Receiver<Asking>,
    running: Arc<Running>,
    handle: Handle,
    metrics: Metrics,
    /// Who waits for the answer of which question.
    askers: HashMap<u64, oneshot::Sender<Reply>>,
    last_ticket: u64,
    /// Rounds and proposals; the keeper bounds their number.
    under_way: FuturesUnordered<BoxFuture<'static, Event>>,
}

impl LeasePump {
    pub fn new(
        keeper: Keeper,
        feed: LeaseFeed,
        questions: mpsc::Receiver<Asking>,
        running: Arc<Running>,
        handle: Handle,
        metrics: Metrics,
    ) -> Self {
        Self {
            keeper,
            feed,
            questions,
            running,
            handle,
            metrics,
            askers: HashMap::new(),
            last_ticket: 0,
            under_way: FuturesUnordered::new(),
        }
    }

    /// Runs until it is dropped.
    ///
    /// # Errors
    /// When the state database cannot be read.
    pub async fn run(mut self) -> Result<(), Fatal> {
        loop {
            let mut events = Vec::new();
            tokio::select! {
                () = self.feed.changed() => {}
                Some(asking) = self.questions.recv() => events.push(self.take_in(asking)),
                Some(event) = self.under_way.next() => events.push(event),
            }
            while let Some(Some(event)) = self.under_way.next().now_or_never() {
                events.push(event);
            }
            while events.len() < MAX_RUN
                && let Ok(asking) = self.questions.try_recv()
            {
                events.push(self.take_in(asking));
            }
            // Taken only now, so that it holds everything that happened before
            // these events.
            let news = self.feed.take();
            let mut effects = Vec::new();
            for event in news.into_iter().chain(events) {
                self.keeper.handle(event, &mut effects);
            }
            self.keeper.flush(&mut effects);
            self.metrics.leases.set(self.keeper.leases() as u64);
            self.execute(effects).await?;
        }
    }

    fn take_in(&mut self, asking: Asking) -> Event {
        self.last_ticket += 1;
        let Asking { id, question, reply } = asking;
        self.askers.insert(self.last_ticket, reply);
        Event::Ask { ticket: self.last_ticket, id, question }
    }

    async fn execute(&mut self, effects: Vec<Effect>) -> Result<(), Fatal> {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            match effect {
                Effect::Confirm(round) => self.confirm(round),
                Effect::Propose(number, op) => self.propose(number, op),
                Effect::Reply(ticket, reply) => {
                    if let Some(asker) = self.askers.remove(&ticket) {
                        // Whoever asked may have given up.
                        let _gone = asker.send(reply);
                    }
                }
                Effect::Load(load) => {
                    let mut more = Vec::new();
                    let loaded = self.load(load).await?;
                    self.keeper.handle(loaded, &mut more);
                    self.keeper.flush(&mut more);
                    effects.extend(more);
                }
            }
        }
        Ok(())
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.handle.shared.request_timeout
    }

    fn confirm(&self, round: u64) {
        let (running, deadline) = (Arc::clone(&self.running), self.deadline());
        let confirmed = async move {
            match running.waiters.ask(&running.inbox, deadline, replica::Event::Read).await {
                Answer::Readable => Event::Confirmed(round),
                Answer::Rejected(why) => Event::Unconfirmed(round, why),
                other => {
                    let why = format!("an answer to another question: {other:?}");
                    Event::Unconfirmed(round, Rejected::Unknown(why))
                }
            }
        };
        self.under_way.push(confirmed.boxed());
    }

    /// Proposes a command on this member, never on another: what it says is
    /// this leader's word.
    fn propose(&self, number: u64, op: Op) {
        if let Op::ExpireLeases(expiring) = &op {
            self.metrics.lease_expiries_proposed.inc_by(expiring.leases.len() as u64);
        }
        let (running, deadline) = (Arc::clone(&self.running), self.deadline());
        let resolved = async move {
            let event = |id| replica::Event::Propose(Command { id: Some(id), op: Some(op) });
            let answer = running.waiters.ask(&running.inbox, deadline, event).await;
            let fate = match answer {
                Answer::Outcome(_) => Fate::Applied,
                Answer::NotLeader(_)
                | Answer::Rejected(Rejected::NotApplied(_) | Rejected::Overloaded(_)) => {
                    Fate::NotApplied
                }
                _ => Fate::Unknown,
            };
            Event::Resolved(number, fate)
        };
        self.under_way.push(resolved.boxed());
    }

    /// Reads all leases. Meanwhile ticks are lost and questions wait.
    async fn load(&mut self, load: u64) -> Result<Event, Fatal> {
        self.feed.follow();
        let view = self.running.view.read().view.clone();
        let read = tokio::task::spawn_blocking(move || view.leases_as_of());
        match read.await {
            Ok(read) => {
                let (position, leases) = read?;
                Ok(Event::Loaded { load, index: position.index, leases })
            }
            Err(gone) => Err(Fatal::new(
                format!("the leases could not be read: {gone}"),
                "start the node again",
            )),
        }
    }
}
