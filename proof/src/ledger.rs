//! What clients were told, and what must therefore be there.
//!
//! Every key is written once, so that each answer has one meaning: after 204
//! the key holds this value at this revision for ever; after "not applied"
//! (503) or "overloaded" (429) it is never there; after anything else it holds
//! this value or is not there. One key a writer, its counter, is written again
//! and again and must never go back.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use reqwest::Method;
use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    Failure, Figures, Result,
    process::{DEADLINE, Endpoint, POLL, Reply},
};

/// Reads under way at once while the ledger is checked.
const CHECKS_AT_ONCE: usize = 8;

/// Pause of a writer after an answer that was no success.
const PAUSE: Duration = Duration::from_millis(20);

/// What a client was told of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It took effect at this revision.
    Acknowledged(u64),
    /// It never had and never will have an effect.
    NotApplied,
    /// Nothing certain.
    Unknown,
}

#[derive(Debug, Clone)]
struct Written {
    value: String,
    told: Told,
}

#[derive(Debug, Default)]
struct Book {
    keys: BTreeMap<String, Written>,
    by_revision: BTreeMap<u64, String>,
    /// Of each counter: the last acknowledged and the last attempted number.
    counters: BTreeMap<String, (u64, u64)>,
    /// Two writes that were told the same revision.
    clashes: Vec<String>,
}

/// Everything that the writers of one cluster were told.
#[derive(Debug)]
pub struct Ledger {
    // A lock because writers and checks share it; held for one entry, or for a copy.
    book: Mutex<Book>,
    acknowledged: AtomicU64,
    next: AtomicU64,
    value_bytes: usize,
}

impl Ledger {
    /// An empty ledger. Values are about as long as said.
    pub fn new(value_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            book: Mutex::default(),
            acknowledged: AtomicU64::new(0),
            next: AtomicU64::new(0),
            value_bytes,
        })
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes that were acknowledged so far, counters aside.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// Waits until so many more writes are acknowledged.
    ///
    /// # Errors
    /// When that does not happen within `limit`.
    pub async fn wait_more(&self, more: u64, limit: Duration) -> Result<()> {
        let (start, from) = (Instant::now(), self.acknowledged());
        while self.acknowledged() < from + more {
            if start.elapsed() >= limit {
                let got = self.acknowledged() - from;
                return Err(Failure::failed(format!(
                    "only {got} of {more} writes were acknowledged within {limit:?}"
                )));
            }
            tokio::time::sleep(POLL / 4).await;
        }
        Ok(())
    }

    /// Writes a new key by this member, and records what was told.
    pub async fn write(&self, endpoint: &Endpoint) -> Told {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        let key = format!("once-{number:06}");
        let value = value(number, self.value_bytes);
        let unknown = Written { value: value.clone(), told: Told::Unknown };
        self.book().keys.insert(key.clone(), unknown);
        let reply = endpoint.request(Method::PUT, &format!("/{key}"), value).await;
        let told = told(reply.as_ref().ok());
        let mut book = self.book();
        if let Some(written) = book.keys.get_mut(&key) {
            written.told = told;
        }
        if let Told::Acknowledged(revision) = told {
            if let Some(other) = book.by_revision.insert(revision, key.clone()) {
                book.clashes.push(format!("{other} and {key} both have revision {revision}"));
            }
            self.acknowledged.fetch_add(1, Ordering::SeqCst);
        }
        told
    }

    async fn count_up(&self, counter: &str, endpoint: &Endpoint) {
        let number = {
            let mut book = self.book();
            let (_, attempted) = book.counters.entry(counter.to_owned()).or_default();
            *attempted += 1;
            *attempted
        };
        let path = format!("/{counter}");
        let reply = endpoint.request(Method::PUT, &path, number.to_string()).await;
        if matches!(told(reply.as_ref().ok()), Told::Acknowledged(_))
            && let Some((acknowledged, _)) = self.book().counters.get_mut(counter)
        {
            *acknowledged = number;
        }
    }

    /// Starts writers, each of which has one request under way and goes to the
    /// next member after one that was not a success.
    pub fn start_writers(self: &Arc<Self>, count: usize, endpoints: &[Endpoint]) -> Writers {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let run = self.next.load(Ordering::SeqCst);
        for writer in 0..count {
            let (ledger, stop) = (Arc::clone(self), stop.clone());
            let endpoints = endpoints.to_vec();
            // New ones each time: a counter has one writer, one request at a time.
            let counter = format!("counter-{run}-{writer}");
            tasks.spawn(async move {
                let mut at = writer;
                while let Some(endpoint) = endpoints.get(at % endpoints.len().max(1)) {
                    if stop.is_cancelled() {
                        return;
                    }
                    if matches!(ledger.write(endpoint).await, Told::Acknowledged(_)) {
                        ledger.count_up(&counter, endpoint).await;
                    } else {
                        at += 1;
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            });
        }
        Writers { stop, tasks }
    }

    /// Reads the keys with numbers from `from` on by this member, linearizably,
    /// and records every broken promise. Returns how many acknowledged writes
    /// were found to be there.
    ///
    /// # Errors
    /// When the member does not answer.
    pub async fn check(
        self: &Arc<Self>,
        endpoint: &Endpoint,
        from: u64,
        figures: &Figures,
    ) -> Result<u64> {
        let (keys, counters, clashes) = {
            let mut book = self.book();
            let keys = book.keys.range(format!("once-{from:06}")..);
            let keys: Vec<_> = keys.map(|(key, written)| (key.clone(), written.clone())).collect();
            (keys, book.counters.clone(), std::mem::take(&mut book.clashes))
        };
        for clash in clashes {
            figures.violation(clash);
        }
        let places = Arc::new(Semaphore::new(CHECKS_AT_ONCE));
        let mut reads = JoinSet::new();
        for (key, written) in keys {
            let place = Arc::clone(&places).acquire_owned().await?;
            let endpoint = endpoint.clone();
            reads.spawn(async move {
                let found = settled(&endpoint, &key).await;
                drop(place);
                (key, written, found)
            });
        }
        let mut checked = 0;
        while let Some(read) = reads.join_next().await {
            let (key, written, found) = read?;
            match wrong(&written, &found?) {
                Some(why) => figures.violation(format!("member {}: {key} {why}", endpoint.id)),
                None if matches!(written.told, Told::Acknowledged(_)) => checked += 1,
                None => {}
            }
        }
        for (counter, (acknowledged, attempted)) in counters {
            let reply = settled(endpoint, &counter).await?;
            let number =
                if reply.status == 200 { reply.text().parse().unwrap_or(u64::MAX) } else { 0 };
            if !(acknowledged..=attempted).contains(&number) {
                figures.violation(format!(
                    "member {}: {counter} stands at {number}, acknowledged up to {acknowledged}, \
                     attempted up to {attempted}",
                    endpoint.id
                ));
            }
        }
        figures.count("acknowledged writes checked", checked);
        Ok(checked)
    }

    /// The number that the next key will have, for [`check`](Self::check).
    pub fn next(&self) -> u64 {
        self.next.load(Ordering::SeqCst)
    }

    /// Asks a member that may be damaged for a key, and records a wrong answer.
    /// An error is no wrong answer, and nothing is one that a stale read may
    /// not have seen yet.
    pub async fn probe(&self, endpoint: &Endpoint, number: u64, stale: bool, figures: &Figures) {
        let key = format!("once-{number:06}");
        let Some(written) = self.book().keys.get(&key).cloned() else { return };
        let path = if stale { format!("/{key}?consistency=stale") } else { format!("/{key}") };
        let Ok(reply) = endpoint.request(Method::GET, &path, "").await else { return };
        if !matches!(reply.status, 200 | 404) || (stale && reply.status == 404) {
            return;
        }
        figures.count("answers of suspects", 1);
        if let Some(why) = wrong(&written, &reply) {
            let how = if stale { "stale" } else { "linearizable" };
            figures.violation(format!("member {}, {how} read: {key} {why}", endpoint.id));
        }
    }
}

/// Writers at work. Dropping them stops them at once.
#[derive(Debug)]
pub struct Writers {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Writers {
    /// Stops them once each has its answer.
    ///
    /// # Errors
    /// When one of them panicked.
    pub async fn stop(mut self) -> Result<()> {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended?;
        }
        Ok(())
    }
}

fn value(number: u64, bytes: usize) -> String {
    let mut value = format!("value {number} ");
    // Not compressible to nothing, so that files have the size that is meant.
    let mut state = number;
    while value.len() < bytes {
        // Knuth's linear congruential generator.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        value.push_str(&format!("{:016x}", state ^ (state >> 29)));
    }
    value
}

fn told(reply: Option<&Reply>) -> Told {
    match reply {
        Some(reply) if reply.status == 204 => {
            reply.number("etag").map_or(Told::Unknown, Told::Acknowledged)
        }
        Some(reply) if matches!(reply.status, 429 | 503) => Told::NotApplied,
        _ => Told::Unknown,
    }
}

/// Why an answer, 200 or 404, is wrong.
fn wrong(written: &Written, reply: &Reply) -> Option<String> {
    let found = reply.status == 200;
    if found && reply.body != written.value.as_bytes() {
        let text = reply.text();
        let start: String = text.chars().take(60).collect();
        return Some(format!("holds another value ({} bytes): {start}", text.len()));
    }
    match written.told {
        Told::Acknowledged(revision) if !found => {
            Some(format!("is lost, acknowledged at revision {revision}"))
        }
        Told::Acknowledged(revision) if reply.number("etag") != Some(revision) => Some(format!(
            "has revision {:?}, acknowledged at revision {revision}",
            reply.number("etag")
        )),
        Told::NotApplied if found => Some("is there, although told to be not applied".to_owned()),
        _ => None,
    }
}

/// A settled answer, 200 or 404.
async fn settled(endpoint: &Endpoint, key: &str) -> Result<Reply> {
    let start = Instant::now();
    loop {
        let reply = endpoint.request(Method::GET, &format!("/{key}"), "").await;
        match reply {
            Ok(reply) if matches!(reply.status, 200 | 404) => return Ok(reply),
            reply if start.elapsed() >= DEADLINE => {
                let last = reply.map(|reply| format!("{} {}", reply.status, reply.text()));
                return Err(Failure::failed(format!(
                    "member {} does not answer GET /{key}: {last:?}",
                    endpoint.id
                )));
            }
            _ => tokio::time::sleep(POLL).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderMap, HeaderValue};

    use super::*;

    fn reply(status: u16, value: &str, revision: &'static str) -> Reply {
        let mut headers = HeaderMap::new();
        headers.insert("etag", HeaderValue::from_static(revision));
        Reply { status, headers, body: value.as_bytes().to_vec() }
    }

    #[test]
    fn wrong_answers_are_found() {
        let written = |told| Written { value: "v".to_owned(), told };
        let right = reply(200, "v", "\"7\"");
        let absent = reply(404, "", "\"0\"");
        for (told, answer, is_wrong) in [
            (Told::Acknowledged(7), &right, false),
            (Told::Acknowledged(7), &absent, true),
            (Told::Acknowledged(8), &right, true),
            (Told::Acknowledged(7), &reply(200, "w", "\"7\""), true),
            (Told::NotApplied, &absent, false),
            (Told::NotApplied, &right, true),
            (Told::Unknown, &right, false),
            (Told::Unknown, &absent, false),
            (Told::Unknown, &reply(200, "w", "\"7\""), true),
        ] {
            assert_eq!(wrong(&written(told), answer).is_some(), is_wrong, "{told:?} {answer:?}");
        }
    }

    #[test]
    fn answers_mean_what_the_contract_says() {
        assert_eq!(told(Some(&reply(204, "", "\"9\""))), Told::Acknowledged(9));
        assert_eq!(told(Some(&reply(503, "", ""))), Told::NotApplied);
        assert_eq!(told(Some(&reply(504, "", ""))), Told::Unknown);
        assert_eq!(told(None), Told::Unknown);
    }
}
