//! Clients at work: plain HTTP and gRPC, watches and leases, at a bounded rate,
//! recording every request and what came of it.

mod clock;
mod collect;
mod dice;
mod grpc;
mod http;
mod lease;
mod target;
mod value;
mod watcher;

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

pub use clock::Clock;
pub use collect::{all_pairs, changes, hash_at};
pub use dice::Dice;
pub use lease::PREFIX as LEASED;
pub use target::{Target, ended};

use crate::{
    Figures, Result,
    history::{Ask, Condition, End, Keys, LeaseLife, Record, Seen, Watched},
    process::within,
    report::During,
};

/// What the answers of all clients are counted as.
pub const ANSWERED: &str = "requests answered";

/// How long the least number of answers may take. A machine that is busy has
/// few of them a second.
const ANSWERS_LIMIT: Duration = Duration::from_secs(300);

/// How long a client waits for an answer: longer than the members' request
/// timeout, so that a member that can say what came of a request does.
const ANSWER_LIMIT: Duration = Duration::from_secs(4);

/// What all clients of a load share.
#[derive(Debug, Clone)]
struct Shared {
    clock: Clock,
    values: value::Values,
    figures: Arc<Figures>,
    /// No more requests.
    stop: CancellationToken,
}

impl Shared {
    /// Counts a request; whether it was answered.
    fn count(&self, end: &End) -> bool {
        let name = match end {
            End::Ok(_) => ANSWERED,
            End::NotApplied => "surely not applied",
            End::Unknown => "of unknown fate",
        };
        self.figures.count(name, 1);
        matches!(end, End::Ok(_))
    }
}

/// How much load.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The least time between two requests is the second divided by this.
    pub requests_per_second: u32,
    /// Clients of plain HTTP, and as many of gRPC.
    pub clients: u32,
    /// What the clients choose depends on it.
    pub seed: u64,
}

/// A client with one request at a time.
trait Client: Send {
    fn shared(&self) -> &Shared;

    /// Sends a request of its choice.
    fn ask(&mut self) -> impl Future<Output = Record> + Send;

    /// Goes on with another member, or another connection to the same.
    fn change_connection(&mut self);
}

/// Has a client ask until the load ends; all that was asked.
async fn run(mut client: impl Client, pause: Duration) -> Brought {
    let mut records = Vec::new();
    let mut ticks = interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !client.shared().stop.is_cancelled() {
        ticks.tick().await;
        let record = client.ask().await;
        if !client.shared().count(&record.end) {
            client.change_connection();
        }
        records.push(record);
    }
    Brought::Records(records)
}

/// What a client brings home.
enum Brought {
    Records(Vec<Record>),
    Leases(Vec<LeaseLife>),
}

/// Clients at work. Dropping it ends them.
pub struct Load {
    shared: Shared,
    clients: JoinSet<Brought>,
    watchers: JoinSet<Watched>,
    probes: Vec<Record>,
    /// No more watching; after the last request.
    enough: watcher::Until,
}

/// The clients that hold leases.
const LEASE_CLIENTS: u64 = 2;

impl Load {
    /// Starts clients of these members.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn start(targets: &[Target], options: Options, figures: &Arc<Figures>) -> Result<Self> {
        let shared = Shared {
            clock: Clock::start(),
            values: value::Values::default(),
            figures: Arc::clone(figures),
            stop: CancellationToken::new(),
        };
        let mut clients = JoinSet::new();
        let pause =
            Duration::from_secs(1) * (2 * options.clients) / options.requests_per_second.max(1);
        for number in 0..u64::from(options.clients) {
            let dice = Dice::new(options.seed, 2 * number);
            let client = http::HttpClient::new(targets, shared.clone(), dice)?;
            clients.spawn(run(client, pause));
            let dice = Dice::new(options.seed, 2 * number + 1);
            let client = grpc::GrpcClient::new(targets, shared.clone(), dice)?;
            clients.spawn(run(client, pause));
        }
        for number in 0..LEASE_CLIENTS {
            let dice = Dice::new(options.seed, 1_000 + number);
            let client = lease::LeaseClient::new(number, targets, shared.clone(), dice)?;
            clients.spawn(async move { Brought::Leases(client.run().await) });
        }
        let enough = watcher::Until::default();
        let mut watchers = JoinSet::new();
        for (number, (name, keys)) in (0..).zip(watched_keys()) {
            let dice = Dice::new(options.seed, 2_000 + number);
            let watcher = watcher::Watcher::new(name, keys, targets, shared.clone(), dice)?;
            let enough = enough.clone();
            watchers.spawn(watcher.run(enough));
        }
        Ok(Self { shared, clients, watchers, probes: Vec::new(), enough })
    }

    /// A write through one member, recorded like all others; whether it was
    /// acknowledged.
    ///
    /// # Errors
    /// When no client can be made.
    pub async fn probe(&mut self, target: &Target) -> Result<bool> {
        // A connection of its own: older ones may not have noticed yet that
        // the network is whole again.
        let endpoint = target.endpoint()?;
        let (key, value) =
            (format!("{}probe", http::prefix(&self.shared)), self.shared.values.next());
        let ask = Ask::HttpPut { key, value, condition: Condition::Always };
        let record = http::send(target.id, &endpoint, ask, &self.shared).await;
        let acknowledged = record.answer().is_some();
        self.probes.push(record);
        Ok(acknowledged)
    }

    /// Waits until this job's clients, of all its loads, have had so many
    /// answers: how many a second there are is not for a job to judge.
    ///
    /// # Errors
    /// When they do not come.
    pub async fn until_answered(&self, answers: u64) -> Result<()> {
        let what = format!("{answers} {ANSWERED}");
        let enough =
            async || (self.shared.figures.counted_so_far(ANSWERED) >= answers).then_some(());
        within(ANSWERS_LIMIT, &what, enough).await
    }

    /// Lets the clients end what they do, but not the watches.
    ///
    /// # Errors
    /// When a client panicked.
    pub async fn stop_requests(&mut self) -> Result<Seen> {
        self.shared.stop.cancel();
        let mut seen = Seen { records: std::mem::take(&mut self.probes), ..Seen::default() };
        while let Some(brought) = self.clients.join_next().await {
            match brought.during("a client of the load")? {
                Brought::Records(records) => seen.records.extend(records),
                Brought::Leases(leases) => seen.leases.extend(leases),
            }
        }
        Ok(seen)
    }

    /// Waits until the watches have come to this revision.
    ///
    /// # Errors
    /// When a watcher panicked.
    pub async fn stop_watches(&mut self, revision: u64) -> Result<Vec<Watched>> {
        self.enough.set(revision);
        let mut watches = Vec::new();
        while let Some(watched) = self.watchers.join_next().await {
            watches.push(watched.during("a watcher of the load")?);
        }
        Ok(watches)
    }
}

/// What is watched: everything, what gRPC writes, what HTTP writes, one key.
fn watched_keys() -> [(&'static str, Keys); 4] {
    [
        ("of everything", Keys { key: "\0".into(), end: "~".into() }),
        ("of gRPC's keys", Keys::below(grpc::PREFIX)),
        ("of HTTP's keys", Keys::below(http::PREFIX)),
        ("of one key", Keys::one(grpc::key(0))),
    ]
}
