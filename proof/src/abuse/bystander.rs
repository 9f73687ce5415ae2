//! A well-behaved client, and how it fares.
//!
//! It asks at fixed times, whatever became of the questions before, and the
//! time of an answer counts from the moment at which it was to be asked: a
//! member that stands still makes all of them late and not just one.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use metastore_proto::etcdserverpb::{PutRequest, RangeRequest, kv_client::KvClient};
use reqwest::Method;
use tokio::{
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
    time::{MissedTickBehavior, interval, timeout},
};
use tonic::transport::Channel;

use crate::{
    Failure, Result,
    history::End,
    ledger::{Ledger, Told},
    load::{Target, ended},
    process::Endpoint,
};

/// Questions a second, to all members together: HTTP and gRPC, reads and
/// writes in turn.
const PER_SECOND: u64 = 120;

/// How long the client waits: longer than the members do.
const LIMIT: Duration = Duration::from_secs(10);

/// Questions under way at once; beyond it nobody could call this light.
const UNDER_WAY: usize = 2_000;

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Answered,
    /// 429 or 503: surely not applied.
    Refused,
    /// Anything else.
    Unknown,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    write: bool,
    outcome: Outcome,
    took: Duration,
}

/// What was asked in a time, and what came of it.
#[derive(Debug, Default)]
struct Window {
    // A lock because every question has a task; held for one addition.
    samples: Mutex<Vec<Sample>>,
    asked: AtomicU64,
}

/// How the client fared for a while.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fared {
    /// Questions asked.
    pub asked: u64,
    /// Of those, answered as they should be.
    pub answered: u64,
    /// Told to be surely not applied.
    pub refused: u64,
    /// The 99th percentile of all reads, whatever became of them.
    pub reads: Duration,
    /// That of all writes.
    pub writes: Duration,
}

/// The client. Dropping it ends it.
pub struct Bystander {
    window: Arc<Mutex<Arc<Window>>>,
    task: JoinHandle<()>,
}

/// One member as the client reaches it. Cheap to clone.
#[derive(Clone)]
struct Reached {
    endpoint: Endpoint,
    channel: Channel,
    ledger: Arc<Ledger>,
}

impl Window {
    fn samples(&self) -> MutexGuard<'_, Vec<Sample>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fared(&self) -> Fared {
        let samples = self.samples();
        let count = |outcome| samples.iter().filter(|s| s.outcome == outcome).count() as u64;
        let percentile = |write| {
            let mut times: Vec<_> =
                samples.iter().filter(|s| s.write == write).map(|s| s.took).collect();
            times.sort_unstable();
            times.get(times.len() * 99 / 100).copied().unwrap_or_default()
        };
        Fared {
            asked: self.asked.load(Ordering::SeqCst),
            answered: count(Outcome::Answered),
            refused: count(Outcome::Refused),
            reads: percentile(false),
            writes: percentile(true),
        }
    }
}

impl Bystander {
    /// Starts to ask. HTTP writes are entered in the ledger.
    ///
    /// # Errors
    /// When the clients cannot be made.
    pub fn start(targets: &[Target], ledger: &Arc<Ledger>) -> Result<Self> {
        let mut members = Vec::new();
        for target in targets {
            let endpoint = Endpoint::new(target.id, target.address, LIMIT)?;
            let channel = target.channel()?;
            members.push(Reached { endpoint, channel, ledger: Arc::clone(ledger) });
        }
        let window = Arc::new(Mutex::new(Arc::<Window>::default()));
        let task = tokio::spawn(ask(members, Arc::clone(&window)));
        Ok(Self { window, task })
    }

    /// How it fares for so long.
    ///
    /// # Errors
    /// When an answer is still missing long after its time, or nothing was asked.
    pub async fn measure(&self, lasts: Duration) -> Result<Fared> {
        let window = Arc::<Window>::default();
        let change = |to| {
            let mut present = self.window.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *present, to)
        };
        change(Arc::clone(&window));
        tokio::time::sleep(lasts).await;
        change(Arc::default());
        let start = Instant::now();
        while (window.samples().len() as u64) < window.asked.load(Ordering::SeqCst) {
            if start.elapsed() > 2 * LIMIT || self.task.is_finished() {
                return Err(Failure::failed("the well-behaved client is stuck"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(window.fared())
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn ask(members: Vec<Reached>, window: Arc<Mutex<Arc<Window>>>) {
    let places = Arc::new(Semaphore::new(UNDER_WAY));
    let mut tasks = JoinSet::new();
    let mut ticks = interval(Duration::from_secs(1) / PER_SECOND as u32);
    // What was to be asked while this task stood still is asked at once, with
    // its own time.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut number = 0_u64;
    loop {
        let intended = ticks.tick().await.into_std();
        while tasks.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let window = Arc::clone(&window.lock().unwrap_or_else(PoisonError::into_inner));
        window.asked.fetch_add(1, Ordering::SeqCst);
        let member = members[number as usize % members.len()].clone();
        // Each member gets each kind in turn.
        let kind = number / members.len() as u64 % 4;
        tasks.spawn(async move {
            let asked = member.ask(kind, number);
            let outcome = timeout(LIMIT, asked).await.unwrap_or(Outcome::Unknown);
            let took = intended.elapsed();
            window.samples().push(Sample { write: kind < 2, outcome, took });
            drop(place);
        });
        number += 1;
    }
}

impl Reached {
    async fn ask(self, kind: u64, number: u64) -> Outcome {
        let key = format!("modest/{}", number % 100);
        let client = KvClient::new(self.channel);
        match kind {
            0 => match self.ledger.write(&self.endpoint).await {
                Told::Acknowledged(_) => Outcome::Answered,
                Told::NotApplied => Outcome::Refused,
                Told::Unknown => Outcome::Unknown,
            },
            1 => {
                let value = number.to_string().into();
                let put = PutRequest { key: key.into(), value, ..PutRequest::default() };
                of_call(client.max_decoding_message_size(1 << 20).put(put).await)
            }
            2 => {
                let reply = self.endpoint.request(Method::GET, &format!("/{key}"), "").await;
                match reply.map(|reply| reply.status) {
                    Ok(200 | 404) => Outcome::Answered,
                    Ok(429 | 503) => Outcome::Refused,
                    _ => Outcome::Unknown,
                }
            }
            _ => {
                let range = RangeRequest { key: key.into(), ..RangeRequest::default() };
                of_call(client.max_decoding_message_size(1 << 20).range(range).await)
            }
        }
    }
}

fn of_call<T>(answer: std::result::Result<T, tonic::Status>) -> Outcome {
    match answer {
        Ok(_) => Outcome::Answered,
        Err(status) if ended(&status) == Ok(End::NotApplied) => Outcome::Refused,
        Err(_) => Outcome::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_answers_show_in_the_percentile_whatever_they_say() {
        let window = Window::default();
        for number in 0..200 {
            let late = number % 50 == 0;
            let took = Duration::from_millis(if late { 900 } else { 5 });
            let outcome = if late { Outcome::Unknown } else { Outcome::Answered };
            window.samples().push(Sample { write: number % 100 < 50, outcome, took });
            window.asked.fetch_add(1, Ordering::SeqCst);
        }
        let fared = window.fared();
        assert_eq!((fared.asked, fared.answered, fared.refused), (200, 196, 0));
        assert_eq!(fared.writes, Duration::from_millis(900));
        assert_eq!(fared.reads, Duration::from_millis(900));
    }
}
