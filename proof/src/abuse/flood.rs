//! More proposals than the cluster can commit.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metastore_proto::etcdserverpb::{PutRequest, kv_client::KvClient};
use reqwest::Method;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::transport::Channel;

use super::scene::{Ready, Scene};
use crate::{
    Figures, Result,
    history::End,
    load::{Target, ended},
    process::Endpoint,
};

/// Longer than the members take to say what they know.
const LIMIT: Duration = Duration::from_secs(15);

/// Pause of a client that was refused: as short as a rude one makes it, and
/// long enough that this process does not take the machine.
const PAUSE: Duration = Duration::from_millis(250);

/// Until all clients are at it.
const RAMP: Duration = Duration::from_secs(1);

/// Sizes of values, and how often the large ones come.
const SMALL_BYTES: usize = 1 << 10;
const LARGE_BYTES: usize = 64 << 10;
const LARGE_EVERY: u64 = 32;

/// Acknowledged bytes after which only small values follow, so that the disks
/// of the machine survive it.
const LARGE_TOTAL_BYTES: u64 = 64 << 20;

/// Writes that are looked at afterwards, of each sort.
const CHECKED: usize = 2_000;

/// What was told of the writes, by their numbers.
#[derive(Debug, Default)]
struct Told {
    acknowledged: Vec<(u64, u64)>,
    not_applied: Vec<u64>,
}

#[derive(Debug, Default)]
struct Book {
    next: AtomicU64,
    large_bytes: AtomicU64,
    // A lock because every client has a task; held for one addition.
    told: Mutex<Told>,
}

/// What came of a write.
enum Fate {
    /// At this revision.
    Acknowledged(u64),
    Refused,
    NotApplied,
    Unknown,
    /// A member must not answer so.
    Wrong(String),
}

impl Book {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next number and the size of its value.
    fn next(&self) -> (u64, usize) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let large = number.is_multiple_of(LARGE_EVERY)
            && self.large_bytes.load(Ordering::Relaxed) < LARGE_TOTAL_BYTES;
        (number, if large { LARGE_BYTES } else { SMALL_BYTES })
    }

    /// Enters what was told; whether the client should wait a little.
    fn enter(&self, number: u64, bytes: usize, fate: Fate, figures: &Figures) -> bool {
        figures.count("proposals in excess", 1);
        match fate {
            Fate::Acknowledged(revision) => {
                if bytes == LARGE_BYTES {
                    self.large_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
                }
                self.told().acknowledged.push((number, revision));
                figures.count("of these acknowledged", 1);
                return false;
            }
            Fate::Refused => figures.count("of these told 429", 1),
            Fate::NotApplied => figures.count("of these told 503", 1),
            Fate::Unknown => {
                figures.count("of these told 504", 1);
                return true;
            }
            Fate::Wrong(why) => {
                figures.violation(format!("under a flood of proposals: {why}"));
                return true;
            }
        }
        let mut told = self.told();
        if told.not_applied.len() < CHECKED {
            told.not_applied.push(number);
        }
        true
    }
}

fn key(run: u64, number: u64) -> String {
    format!("flood/{run}/{number}")
}

/// Half of the proposals come over HTTP, half over one gRPC connection to each
/// member.
pub async fn run(scene: Scene, ready: Ready) -> Result<()> {
    let run = scene.figures.counted_so_far("proposals in excess");
    let book = Arc::new(Book::default());
    let mut clients = JoinSet::new();
    let mut channels = Vec::new();
    for site in scene.sites.iter() {
        let target = Target { id: site.endpoint.id, address: site.client };
        channels.push((Endpoint::new(target.id, target.address, LIMIT)?, target.channel()?));
    }
    for number in 0..scene.size.proposals {
        let (endpoint, channel) = channels[number as usize / 2 % channels.len()].clone();
        let (book, scene) = (Arc::clone(&book), scene.clone());
        clients.spawn(async move {
            // Not all connections in one moment.
            let begins = RAMP.mul_f64(number as f64 / scene.size.proposals as f64);
            sleep(begins).await;
            while !scene.stop.is_cancelled() {
                let (key_number, bytes) = book.next();
                let (key, value) = (key(run, key_number), "x".repeat(bytes));
                let fate = match number % 2 {
                    0 => put(&endpoint, &key, value).await,
                    _ => call(channel.clone(), key, value).await,
                };
                if book.enter(key_number, bytes, fate, &scene.figures) {
                    sleep(PAUSE).await;
                }
            }
        });
    }
    sleep(2 * RAMP).await;
    let _ = ready.send(());
    scene.stop.cancelled().await;
    while let Some(ended) = clients.join_next().await {
        ended?;
    }
    check(&book, run, &scene).await
}

async fn put(endpoint: &Endpoint, key: &str, value: String) -> Fate {
    let Ok(reply) = endpoint.request(Method::PUT, &format!("/{key}"), value).await else {
        return Fate::Unknown;
    };
    match reply.status {
        204 => reply
            .number("etag")
            .map_or(Fate::Wrong("204 without a revision".to_owned()), Fate::Acknowledged),
        429 => Fate::Refused,
        503 => Fate::NotApplied,
        504 => Fate::Unknown,
        other => Fate::Wrong(format!("a PUT was answered {other}: {}", reply.text())),
    }
}

async fn call(channel: Channel, key: String, value: String) -> Fate {
    let put = PutRequest { key: key.into(), value: value.into(), ..PutRequest::default() };
    let answer = timeout(LIMIT, KvClient::new(channel).put(put)).await;
    match answer {
        Err(_) => Fate::Unknown,
        Ok(Ok(answer)) => match answer.into_inner().header {
            Some(header) => Fate::Acknowledged(header.revision.unsigned_abs()),
            None => Fate::Wrong("a Put without a header".to_owned()),
        },
        Ok(Err(status)) => match ended(&status) {
            Ok(End::NotApplied) if status.code() == tonic::Code::ResourceExhausted => Fate::Refused,
            Ok(End::NotApplied) => Fate::NotApplied,
            Ok(_) => Fate::Unknown,
            Err(why) => Fate::Wrong(why),
        },
    }
}

/// What was acknowledged is there, and what was refused is not: of each so many.
async fn check(book: &Book, run: u64, scene: &Scene) -> Result<()> {
    let (acknowledged, not_applied) = {
        let told = book.told();
        let step = told.acknowledged.len().div_ceil(CHECKED).max(1);
        let acknowledged: Vec<_> = told.acknowledged.iter().step_by(step).copied().collect();
        (acknowledged, told.not_applied.clone())
    };
    let figures = &scene.figures;
    for (turn, (number, revision)) in acknowledged.into_iter().enumerate() {
        let endpoint = &scene.site(turn as u64).endpoint;
        let reply = endpoint.request(Method::GET, &format!("/{}", key(run, number)), "").await?;
        if reply.status == 429 {
            continue;
        }
        if reply.status != 200 || reply.number("etag") != Some(revision) {
            let (id, status, found) = (endpoint.id, reply.status, reply.number("etag"));
            figures.violation(format!(
                "a write in excess was acknowledged at revision {revision}; member {id} says \
                 {status} and {found:?}"
            ));
        }
        figures.count("acknowledged in excess checked", 1);
    }
    for (turn, number) in not_applied.into_iter().enumerate() {
        let endpoint = &scene.site(turn as u64).endpoint;
        let reply = endpoint.request(Method::GET, &format!("/{}", key(run, number)), "").await?;
        if reply.status == 200 {
            figures.violation("a write in excess is there, although it was refused");
        }
        figures.count("refused in excess checked", 1);
    }
    Ok(())
}
