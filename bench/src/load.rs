//! Clients that each send one request after the other.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use metastore_proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    StatusRequest, StatusResponse,
};
use prost::Message;
use rand::{RngExt, rngs::SmallRng};
use tokio::time::timeout;

use crate::{
    Failure, crew,
    endpoint::Endpoint,
    failure::Trouble,
    grpc::{self, Connection, Path, Stream},
    keys::{random, value},
    pace::{Pace, Turn},
    plan::{Plan, Workload},
    progress::Progress,
    session::{Consistency, Session, Swapped},
    tally::Tally,
};

/// For how long leases are granted, in seconds: longer than most runs.
const LEASE_TTL_S: i64 = 600;

/// How long a member may take to say what it is.
const STATUS_PATIENCE: Duration = Duration::from_secs(5);

const STATUS: Path = "/etcdserverpb.Maintenance/Status";
const LEASE_GRANT: Path = "/etcdserverpb.Lease/LeaseGrant";
const LEASE_KEEP_ALIVE: Path = "/etcdserverpb.Lease/LeaseKeepAlive";

/// What a load came to.
#[derive(Debug)]
pub struct Loaded {
    /// Its requests.
    pub tally: Tally,
    /// The time in which they count.
    pub measured: Duration,
    /// Writes that did not happen because the key had changed.
    pub conflicts: u64,
}

/// What all clients share.
#[derive(Debug)]
struct Shared {
    plan: Plan,
    pace: Pace,
    /// The revision at which each key was last seen, if that matters.
    known: Vec<AtomicU64>,
    conflicts: AtomicU64,
}

/// Runs the clients to the end.
///
/// # Errors
/// When they cannot do what they are to do.
pub fn run(plan: &Plan) -> Result<Loaded, Failure> {
    let known = if plan.options.workload == Workload::Txn { plan.keys.count() } else { 0 };
    let shared = Arc::new(Shared {
        plan: plan.clone(),
        pace: Pace::start(plan.length, plan.options.rate),
        known: (0..known).map(|_| AtomicU64::new(0)).collect(),
        conflicts: AtomicU64::new(0),
    });
    let mut tallies = Vec::new();
    let mut number = 0;
    let work = plan.sessions(plan.options.clients).into_iter().map(|sessions| {
        let tally = Arc::new(Mutex::new(Tally::default()));
        tallies.push(Arc::clone(&tally));
        let clients = sessions.into_iter().map(|session| {
            number += 1;
            let (shared, tally) = (Arc::clone(&shared), Arc::clone(&tally));
            Client { session, shared, tally, random: random(number), lease: None }.run()
        });
        clients.collect()
    });
    let work = work.collect();
    let progress = Progress::new(plan.options.workload.name());
    crew::run(work, || progress.show(shared.pace.part_done(), shared.pace.done()))?;
    let mut tally = Tally::default();
    for one in tallies {
        tally.merge(&one.lock().unwrap_or_else(PoisonError::into_inner));
    }
    let conflicts = shared.conflicts.load(Ordering::Relaxed);
    Ok(Loaded { tally, measured: shared.pace.measured(), conflicts })
}

/// Whether all of the keys are there. Asked over gRPC in any case, where they
/// can be counted.
///
/// # Errors
/// When nobody answers.
pub fn is_filled(plan: &Plan) -> Result<bool, Failure> {
    let keys = plan.keys;
    let mut session = Session::Grpc(grpc::Client::new(&Connection::new(plan.member().clone())));
    let count = async move {
        let counted = session.count(keys.prefix()).await;
        counted.map_err(|trouble| impossible("count the keys", &trouble))
    };
    Ok(crew::run(vec![vec![count]], || {})?.into_iter().all(|count| count >= keys.count()))
}

/// Whether a member answers a linearizable read, if there is one.
pub fn answers(endpoint: &Endpoint) -> bool {
    let mut session = Session::Grpc(grpc::Client::new(&Connection::new(endpoint.clone())));
    ask_once(async move {
        let key = Bytes::from_static(b"bench");
        session.get(key, Consistency::Linearizable).await.ok()
    })
    .is_some()
}

/// Whether a member leads, if it says so.
pub fn leads(endpoint: &Endpoint) -> Option<bool> {
    let mut client = grpc::Client::new(&Connection::new(endpoint.clone()));
    ask_once(async move {
        let question = StatusRequest::default();
        let answer = timeout(STATUS_PATIENCE, client.unary(STATUS, &question)).await;
        let status = answer.ok()?.ok()?;
        let status = StatusResponse::decode(status).ok()?;
        let member = status.header?.member_id;
        Some(member == status.leader)
    })
}

fn ask_once<T: Send + 'static>(ask: impl Future<Output = Option<T>> + Send + 'static) -> Option<T> {
    let asked = crew::run(vec![vec![async { Ok::<_, Failure>(ask.await) }]], || {});
    asked.ok()?.pop()?
}

/// A client with one request at a time.
struct Client {
    session: Session,
    shared: Arc<Shared>,
    /// Of its thread; nobody else takes it before the end.
    tally: Arc<Mutex<Tally>>,
    random: SmallRng,
    /// A lease that is kept alive.
    lease: Option<(i64, Stream)>,
}

impl Client {
    async fn run(mut self) -> Result<(), Failure> {
        let workload = self.shared.plan.options.workload;
        if workload == Workload::LeaseKeepalive {
            let granted = self.grant().await;
            self.lease = Some(granted.map_err(|trouble| impossible("grant a lease", &trouble))?);
        }
        while let Some(turn) = self.shared.pace.turn().await {
            let outcome = self.operate(workload, turn).await;
            if workload == Workload::Fill {
                outcome.as_ref().map_err(|trouble| impossible("write", trouble))?;
            }
            self.shared.pace.end_turn(turn, &outcome, &self.tally).await;
        }
        Ok(())
    }

    async fn operate(&mut self, workload: Workload, turn: Turn) -> Result<(), Trouble> {
        let Shared { plan, .. } = &*self.shared;
        let (keys, options) = (plan.keys, &plan.options);
        let any = keys.any(&mut self.random);
        match workload {
            Workload::Fill => self.put(turn.number).await,
            Workload::Put => self.put(any).await,
            Workload::Range => self.get(any, options.consistency).await,
            Workload::Mixed => {
                if self.random.random_range(0..100) < options.read_percent {
                    self.get(any, options.consistency).await
                } else {
                    self.put(any).await
                }
            }
            Workload::List => {
                // Of those lists that are full.
                let full = keys.count() - keys.count() % options.list_keys;
                let prefix = keys.prefix_of(any % full, plan.list_digits);
                match self.session.list(prefix, options.consistency).await? {
                    count if count == options.list_keys => Ok(()),
                    count => Err(Trouble::Refused(format!("a list of {count} keys"))),
                }
            }
            Workload::Txn => self.swap(any).await,
            Workload::LeaseKeepalive => self.keep_alive().await,
            // It has a load of its own.
            Workload::Watch => Ok(()),
        }
    }

    fn value(&mut self) -> Bytes {
        value(&mut self.random, self.shared.plan.options.value_size)
    }

    async fn put(&mut self, number: u64) -> Result<(), Trouble> {
        let (key, value) = (self.shared.plan.keys.key(number), self.value());
        self.session.put(key, value).await.map(drop)
    }

    async fn get(&mut self, number: u64, consistency: Consistency) -> Result<(), Trouble> {
        match self.session.get(self.shared.plan.keys.key(number), consistency).await? {
            true => Ok(()),
            false => Err(Trouble::Refused("no such key".into())),
        }
    }

    async fn swap(&mut self, number: u64) -> Result<(), Trouble> {
        let (key, value) = (self.shared.plan.keys.key(number), self.value());
        let Some(known) = self.shared.known.get(number as usize) else { return Ok(()) };
        let swapped = self.session.swap(key, value, known.load(Ordering::Relaxed)).await?;
        let newest = match swapped {
            Swapped::Yes(revision) => revision,
            Swapped::No(revision) => {
                self.shared.conflicts.fetch_add(1, Ordering::Relaxed);
                revision
            }
        };
        // Answers may overtake each other.
        known.fetch_max(newest, Ordering::Relaxed);
        Ok(())
    }

    async fn grant(&mut self) -> Result<(i64, Stream), Trouble> {
        let Session::Grpc(client) = &mut self.session else {
            return Err(Trouble::broken("leases are granted over gRPC only"));
        };
        let grant = LeaseGrantRequest { ttl: LEASE_TTL_S, id: 0 };
        let granted = client.unary(LEASE_GRANT, &grant).await?;
        let granted = LeaseGrantResponse::decode(granted).map_err(Trouble::broken)?;
        Ok((granted.id, client.stream(LEASE_KEEP_ALIVE).await?))
    }

    async fn keep_alive(&mut self) -> Result<(), Trouble> {
        let Some((id, stream)) = &mut self.lease else {
            // The stream broke; the lease may be there still, but so is time.
            self.lease = Some(self.grant().await?);
            return Ok(());
        };
        let kept = async {
            stream.send(&LeaseKeepAliveRequest { id: *id })?;
            LeaseKeepAliveResponse::decode(stream.next().await?).map_err(Trouble::broken)
        };
        match kept.await {
            Ok(kept) if kept.ttl > 0 => Ok(()),
            Ok(_) => Err(Trouble::Refused("the lease had expired".into())),
            Err(trouble) => {
                self.lease = None;
                Err(trouble)
            }
        }
    }
}

fn impossible(what: &str, trouble: &Trouble) -> Failure {
    Failure::new(
        format!("cannot {what}: {trouble}"),
        "check --endpoints, and that the cluster has a leader",
    )
}
