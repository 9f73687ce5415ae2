//! Whole requests, to a member that runs as a process of its own, or within this
//! one.

mod gateway;
mod grpc;
mod http;
mod inside;
mod peer;
mod send;
mod site;
mod wire;

use std::{
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use metastore_proof::{Failure, Result};
use tokio::task::JoinSet;

pub use inside::Inside;

use crate::{
    dice::Dice,
    run::{Finding, SHOWN_FAILURES, Tally, Verdict},
};
use send::{Sender, Waits};
use site::{Known, Site};

/// Requests under way at once.
const WORKERS: u64 = 64;

/// Inputs after which the member must be well.
const CHECK_INTERVAL: u64 = 100;

/// Inputs that are all waited for before there are more. When one of them did
/// harm, each is tried alone.
const ROUND: u64 = 500;

/// How often bytes are sent that once did harm: it may depend on the moment.
const TIMES: usize = 5;

/// Sends bytes that once did harm to the client port of a member of the program
/// `binary`.
///
/// # Errors
/// When they still do, or the member cannot be started.
pub async fn again(binary: &Path, bytes: &[u8]) -> Result<()> {
    let site = Site::start(Requests::Wire, binary).await?;
    for _ in 0..TIMES {
        let bytes = bytes.to_vec();
        site.sender().send(Shot::Raw { port: Port::Client, bytes }).await?;
        site.watch().check().await?;
    }
    site.end().await.map_err(Failure::failed)
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requests {
    /// HTTP/1.1 to the client port.
    Http,
    /// JSON to the paths of etcd's gateway.
    Gateway,
    /// gRPC calls of every method.
    Grpc,
    /// Bytes, frames of HTTP/2 among them, to either port.
    Wire,
    /// What only members send, to the peer port.
    Peer,
}

/// One input.
#[derive(Debug, Clone)]
enum Shot {
    /// Bytes on a connection of their own.
    Raw { port: Port, bytes: Vec<u8> },
    /// A gRPC call on a connection that others use too.
    Call { path: String, headers: Vec<(&'static str, &'static str)>, body: Vec<u8> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Port {
    Client,
    Peer,
}

impl Requests {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Http, Self::Gateway, Self::Grpc, Self::Wire, Self::Peer];

    /// What it is called on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Gateway => "gateway",
            Self::Grpc => "grpc",
            Self::Wire => "wire",
            Self::Peer => "peer",
        }
    }

    /// The next input, as bytes of which every change is an input too.
    fn input(self, dice: &mut Dice, known: Known) -> Vec<u8> {
        match self {
            Self::Http => http::bytes(dice),
            Self::Gateway => gateway::bytes(dice),
            Self::Grpc => grpc::input(dice),
            Self::Wire => {
                let port = dice.byte();
                let mut bytes = wire::bytes(dice);
                bytes.insert(0, port);
                bytes
            }
            Self::Peer => peer::bytes(dice, known),
        }
    }

    /// What an input says is sent, and where to.
    fn shot(self, input: &[u8]) -> Shot {
        let (port, bytes) = match self {
            Self::Grpc => return grpc::call(input),
            Self::Http | Self::Gateway => (Port::Client, input),
            Self::Peer => (Port::Peer, input),
            Self::Wire => match input.split_first() {
                Some((first, rest)) if first % 2 == 0 => (Port::Client, rest),
                Some((_, rest)) => (Port::Peer, rest),
                None => (Port::Client, input),
            },
        };
        Shot::Raw { port, bytes: bytes.to_vec() }
    }

    /// Sends the inputs of these numbers to a member of the program `binary`,
    /// and calls `progress` now and then.
    ///
    /// # Errors
    /// When the member cannot be started or watched. What it does wrong is in
    /// the tally.
    pub async fn run(
        self,
        binary: &Path,
        seed: u64,
        inputs: Range<u64>,
        progress: &mut dyn FnMut(&Tally),
    ) -> Result<Tally> {
        let started = Instant::now();
        let asked = inputs.end.saturating_sub(inputs.start);
        let mut tally = Tally::new(self.name(), seed, asked);
        let mut site = Site::start(self, binary).await?;
        let mut from = inputs.start;
        while from < inputs.end && tally.findings.len() < SHOWN_FAILURES {
            let to = inputs.end.min(from + ROUND);
            match self.round(&site, seed, from..to).await {
                Ok(counts) => counts.into_iter().for_each(|verdict| tally.count(verdict)),
                Err(why) => {
                    let why = site.fate(&why);
                    site = self.each(binary, seed, from..to, &why, &mut tally).await?;
                }
            }
            from = to;
            progress(&tally);
        }
        if let Err(why) = site.end().await {
            let what = format!("after all inputs: {why}");
            tally.fail(Finding { input: from.saturating_sub(1), what, minimal: String::new() });
        }
        tally.seconds = started.elapsed().as_secs_f64();
        Ok(tally)
    }

    /// Sends many at once.
    async fn round(self, site: &Site, seed: u64, inputs: Range<u64>) -> Result<Vec<Verdict>> {
        let (next, done) = (Arc::new(AtomicU64::new(inputs.start)), Arc::new(AtomicU64::new(0)));
        let mut workers = JoinSet::new();
        for _ in 0..WORKERS {
            let (next, done) = (Arc::clone(&next), Arc::clone(&done));
            let (watch, sender, end) = (site.watch(), site.sender(), inputs.end);
            workers.spawn(async move {
                let mut verdicts = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= end {
                        return Ok(verdicts);
                    }
                    let input = self.input(&mut Dice::new(seed, number), watch.known());
                    verdicts.push(sender.send(self.shot(&input)).await?);
                    if (done.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(CHECK_INTERVAL) {
                        watch.check().await?;
                    }
                }
            });
        }
        let mut verdicts = Vec::new();
        while let Some(joined) = workers.join_next().await {
            let worked: Result<Vec<Verdict>> =
                joined.map_err(|error| Failure::failed(error.to_string()))?;
            verdicts.extend(worked?);
        }
        Ok(verdicts)
    }

    /// Sends one after the other, to find the one that did harm; gives back a
    /// member that is well.
    async fn each(
        self,
        binary: &Path,
        seed: u64,
        inputs: Range<u64>,
        why: &str,
        tally: &mut Tally,
    ) -> Result<Site> {
        let mut site = Site::start(self, binary).await?;
        let (first, last) = (inputs.start, inputs.end.saturating_sub(1));
        let before = tally.failures;
        for number in inputs {
            let shot = self.shot(&self.input(&mut Dice::new(seed, number), site.watch().known()));
            let sent = match site.sender().send(shot.clone()).await {
                Ok(verdict) => site.watch().check().await.map(|()| verdict),
                Err(failure) => Err(failure),
            };
            match sent {
                Ok(verdict) => tally.count(verdict),
                Err(failure) => {
                    let what = site.fate(&failure);
                    tally.fail(Finding { input: number, what, minimal: shot.shown() });
                    site = Site::start(self, binary).await?;
                }
            }
        }
        if tally.failures == before {
            // Each alone did no harm, but all of them together did.
            let minimal = format!("all of the inputs {first}-{last} together");
            tally.failures += 1;
            tally.findings.push(Finding { input: first, what: why.to_owned(), minimal });
        }
        Ok(site)
    }
}

impl Shot {
    fn shown(&self) -> String {
        match self {
            Self::Raw { port, bytes } => {
                format!("{} at the {port:?} port", crate::run::shown(bytes))
            }
            Self::Call { path, headers, body } => {
                format!("{} to {path} with {headers:?}", crate::run::shown(body))
            }
        }
    }
}
