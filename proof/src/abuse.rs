//! Clients that take more than their share, beside one that behaves well.
//!
//! Every abuse is measured against a moment without one just before: how the
//! well-behaved client fares, what the members take of the machine, that they
//! give it back, and that none of them restarts or loses its lead over it.

mod bodies;
mod bystander;
mod drops;
mod flood;
mod scene;
mod slow;
mod unread;
mod usage;
mod watchers;
mod wire;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use reqwest::Method;
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Failure, Figures, Result,
    drive::drive,
    ledger::Ledger,
    load::Target,
    process::{Group, eventually},
    report::During,
};
use bystander::{Bystander, Fared};
use scene::{Abusers, BIG, Ready, Scene, Site, Size};
use usage::Watch;

/// What to do, and for how long.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How long is measured, in minutes; what is between takes as long as it
    /// takes.
    #[arg(long, default_value_t = 1.0)]
    pub minutes: f64,
    /// Judges times as well: beside each abuse the 99th percentile of the
    /// well-behaved client must stay below twice what it is without.
    #[arg(long)]
    pub timing: bool,
    /// Idle watchers.
    #[arg(long, default_value_t = 10_000)]
    pub watchers: u64,
    /// Connections that send byte by byte.
    #[arg(long, default_value_t = 1_000)]
    pub slow: u64,
    /// Connections that are opened and dropped.
    #[arg(long, default_value_t = 10_000)]
    pub drops: u64,
    /// Proposals in flight at once.
    #[arg(long, default_value_t = 6_000)]
    pub proposals: u64,
    /// Clients that never read, of each kind.
    #[arg(long, default_value_t = 30)]
    pub unread: u64,
    /// Megabytes that those ask for.
    #[arg(long, default_value_t = 100)]
    pub big_mib: u64,
    /// Only this kind of abuse, by its name in the output.
    #[arg(long)]
    pub only: Option<String>,
    /// What takes its time happens only once, together with the others.
    #[arg(long)]
    pub brief: bool,
    /// Keeps data and logs.
    #[arg(long)]
    pub keep: bool,
}

/// A kind of abuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Watchers,
    Slow,
    Bodies,
    Unread,
    Drops,
    Flood,
    /// All of these at once.
    Together,
}

const SINGLE: [Kind; 6] =
    [Kind::Watchers, Kind::Slow, Kind::Bodies, Kind::Unread, Kind::Drops, Kind::Flood];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Watchers => "idle watchers",
            Self::Slow => "byte by byte",
            Self::Bodies => "huge bodies",
            Self::Unread => "never read",
            Self::Drops => "open and drop",
            Self::Flood => "too many proposals",
            Self::Together => "all together",
        }
    }

    /// Of a hundred questions of the well-behaved client, those that must be
    /// answered as if there were no abuse. Where writes exceed what can be
    /// committed somebody must be refused.
    fn least_answered(self) -> u64 {
        match self {
            Self::Flood | Self::Together => 75,
            _ => 99,
        }
    }
}

/// Windows of time in a round: before and beside each abuse.
const WINDOWS: u32 = 2 * (SINGLE.len() as u32 + 1);

/// The longest window: what is longer becomes another round.
const LONGEST_WINDOW: Duration = Duration::from_secs(45);

/// A percentile below this is as good as any other: on a busy machine it says
/// more about its scheduler than about the members.
const NOISE: Duration = Duration::from_millis(20);

/// How long an abuse may take to be in full swing, and to end.
const SWING: Duration = Duration::from_secs(120);

/// Files that this process needs beside a connection for every abuser.
const OTHER_FILES: u64 = 1_000;

/// Bytes of one value below [`BIG`].
const BIG_VALUE_BYTES: usize = 1 << 20;

/// Writes of the well-behaved client, in bytes.
const VALUE_BYTES: usize = 128;

impl Options {
    fn size(&self) -> Size {
        Size {
            watchers: self.watchers,
            slow: self.slow,
            drops: self.drops,
            proposals: self.proposals,
            unread: self.unread,
            big_bytes: self.big_mib << 20,
        }
    }

    /// How many rounds, and how long a window of them is.
    fn plan(&self) -> (u64, Duration) {
        let all = Duration::from_secs_f64((self.minutes * 60.0).clamp(1.0, 1e6));
        let rounds = (all / WINDOWS).as_secs_f64() / LONGEST_WINDOW.as_secs_f64();
        let rounds = (rounds.ceil() as u64).max(1);
        (rounds, all / WINDOWS / rounds as u32)
    }

    fn kinds(&self) -> Vec<Kind> {
        let all = SINGLE.into_iter().chain([Kind::Together]);
        let is_due = |kind: &Kind| match &self.only {
            Some(only) => only == kind.name(),
            None => *kind != Kind::Slow || !self.brief,
        };
        all.filter(is_due).collect()
    }

    /// The targets, each of which every abuse must reach by itself and once
    /// more with the others.
    fn require(&self, figures: &Figures, rounds: u64) {
        figures.require("abuses", rounds * self.kinds().len() as u64);
        for (name, least) in [
            ("idle watchers", self.watchers),
            ("watchers told", self.watchers),
            ("slow connections", self.slow),
            ("slow connections cut", self.slow),
            ("huge bodies refused unread", 8),
            ("endless bodies refused", 8),
            ("huge messages refused", 8),
            ("gzip bombs refused", 8),
            ("bodies at the limit", 300),
            ("of these refused with 429", 1),
            ("clients that never read", 7 * self.unread),
            ("connections dropped", self.drops),
            ("proposals in excess", self.proposals),
            ("acknowledged in excess checked", 100),
            ("looks at memory and files", 3),
            ("recoveries", 1),
        ] {
            let once = self.brief && name.starts_with("slow connections");
            figures.require(name, rounds * if once { least } else { 2 * least });
        }
        figures.require("well-behaved questions answered", 100);
        figures.require("acknowledged writes checked", 100);
    }
}

/// Runs the job; its figures, good or bad.
///
/// # Errors
/// When it could not be run to its end.
pub fn run(binary: &Path, options: &Options) -> Result<Figures> {
    enough_files(options)?;
    let (rounds, window) = options.plan();
    let figures = Arc::new(Figures::new(format!("make abuse MINUTES={}", options.minutes)));
    if options.only.is_none() {
        options.require(&figures, rounds);
    }
    let mut group = Group::on_loopback(binary, 3)?;
    group.set("--election-timeout", "1000ms");
    group.set("--heartbeat-interval", "100ms");
    let abusers = Abusers::new()?;
    let done = drive(async {
        let mut run = Run::begin(&mut group, &abusers, &figures, options, window).await?;
        for round in 1..=rounds {
            for kind in options.kinds() {
                let what = format!("{} ({round} of {rounds})", kind.name());
                run.abuse(kind, &what).await.during(&what)?;
            }
        }
        run.finish().await
    });
    drop(abusers);
    if options.keep {
        println!("abuse: data and logs are kept in {}", group.keep_dir().display());
    }
    done?;
    drop(group);
    Ok(Arc::into_inner(figures).unwrap_or_else(|| Figures::new("abuse")))
}

/// Raises this process's limit on open files as far as it goes.
fn enough_files(options: &Options) -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).during("ask for the limit on open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).during("raise the limit on open files")?;
    let needed = options.watchers / 2 + options.slow + options.proposals + OTHER_FILES;
    if hard < needed {
        return Err(Failure::not_run(format!(
            "{needed} open files are needed and the limit is {hard}; raise it, or ask for less"
        )));
    }
    Ok(())
}

/// One run.
struct Run<'a> {
    group: &'a mut Group,
    abusers: &'a Abusers,
    figures: &'a Arc<Figures>,
    timing: bool,
    window: Duration,
    scene: Scene,
    watch: Watch,
    ledger: Arc<Ledger>,
    bystander: Bystander,
    /// How the client fared when it was alone last.
    alone: Fared,
    /// Who leads, and in which term.
    lead: (u64, u64),
}

impl<'a> Run<'a> {
    async fn begin(
        group: &'a mut Group,
        abusers: &'a Abusers,
        figures: &'a Arc<Figures>,
        options: &Options,
        window: Duration,
    ) -> Result<Self> {
        group.start_all().await?;
        let leader = group.leader().await?;
        let sites = group.members().iter().map(|member| {
            let place = member.place();
            Site {
                client: (place.host, place.client_port).into(),
                peer: (place.host, place.peer_port).into(),
                endpoint: member.endpoint().clone(),
            }
        });
        let scene = Scene {
            sites: Arc::new(sites.collect()),
            figures: Arc::clone(figures),
            size: options.size(),
            stop: CancellationToken::new(),
        };
        fill(&scene).await?;
        let targets: Vec<_> = group
            .members()
            .iter()
            .map(|member| Target { id: member.id, address: member.endpoint().address() })
            .collect();
        let ledger = Ledger::new(VALUE_BYTES);
        let bystander = Bystander::start(&targets, &ledger)?;
        // Until connections are made and caches filled.
        bystander.measure(window).await?;
        let watch = Watch::start(group);
        let lead = (leader, term(group, leader).await?);
        let timing = options.timing;
        let alone = Fared::default();
        Ok(Self {
            group,
            abusers,
            figures,
            timing,
            window,
            scene,
            watch,
            ledger,
            bystander,
            alone,
            lead,
        })
    }

    /// One abuse: the client alone, beside it, and what is left afterwards.
    async fn abuse(&mut self, kind: Kind, what: &str) -> Result<()> {
        self.alone = self.bystander.measure(self.window).await?;
        self.judge(Kind::Watchers, "alone", self.alone);
        let (before, _) = (self.watch.now(), self.watch.peak("alone", self.figures));
        let kinds = if kind == Kind::Together { SINGLE.to_vec() } else { vec![kind] };
        let scene = self.scene.again();
        let handle = self.abusers.handle();
        let handle = handle.ok_or_else(|| Failure::failed("there are no abusers"))?;
        let (mut tasks, mut begun) = (Vec::new(), Vec::new());
        for kind in kinds {
            let (ready, is_ready) = oneshot::channel();
            tasks.push((kind, handle.spawn(act(kind, scene.clone(), ready))));
            begun.push(is_ready);
        }
        let start = Instant::now();
        for is_ready in begun {
            // One that failed is told of below.
            let _ = timeout(SWING, is_ready).await;
        }
        let ramp = start.elapsed();
        let beside = self.bystander.measure(self.window).await?;
        scene.stop.cancel();
        for (kind, task) in tasks {
            let ended = timeout(SWING, task).await;
            let ended = ended.map_err(|_| Failure::failed("does not end"));
            ended.and_then(|joined| joined?).during(kind.name())?;
        }
        let peak = self.watch.peak(what, self.figures);
        eprintln!(
            "abuse: {what}: after {:.1} s, {} of {} answered, {} refused; p99 of reads {} ms \
             (alone {}), of writes {} ms (alone {}); at most {} MiB and {} files a member",
            ramp.as_secs_f64(),
            beside.answered,
            beside.asked,
            beside.refused,
            beside.reads.as_millis(),
            self.alone.reads.as_millis(),
            beside.writes.as_millis(),
            self.alone.writes.as_millis(),
            peak.memory_mib,
            peak.files
        );
        self.judge(kind, what, beside);
        self.group.check_running()?;
        self.same_lead(what).await?;
        self.watch.recovered(what, &before, self.figures).await?;
        self.figures.count("abuses", 1);
        Ok(())
    }

    fn judge(&self, kind: Kind, what: &str, fared: Fared) {
        self.figures.count("well-behaved questions answered", fared.answered);
        self.figures.count("refused", fared.refused);
        self.figures.count("of unknown fate", fared.asked - fared.answered - fared.refused);
        if fared.answered * 100 < fared.asked * kind.least_answered() {
            self.figures.violation(format!("{what}: the well-behaved client fared ill: {fared:?}"));
        }
        if !self.timing || matches!(kind, Kind::Flood | Kind::Together) {
            return;
        }
        for (name, beside, alone) in
            [("reads", fared.reads, self.alone.reads), ("writes", fared.writes, self.alone.writes)]
        {
            if beside > 2 * alone.max(NOISE) {
                self.figures
                    .violation(format!("{what}: p99 of {name} {beside:?}, alone {alone:?}"));
            }
            self.figures.count("percentiles judged", 1);
        }
    }

    async fn same_lead(&mut self, what: &str) -> Result<()> {
        let leader = self.group.leader().await?;
        let lead = (leader, term(self.group, leader).await?);
        if lead != self.lead {
            let before = std::mem::replace(&mut self.lead, lead);
            self.figures.violation(format!("{what}: the lead went from {before:?} to {lead:?}"));
        }
        Ok(())
    }

    /// What was promised is there, on every member.
    async fn finish(self) -> Result<()> {
        drop(self.bystander);
        for endpoint in self.group.endpoints() {
            self.ledger.check(&endpoint, 0, self.figures).await?;
        }
        self.group.check_same_state().await?;
        self.group.check_running()
    }
}

async fn act(kind: Kind, scene: Scene, ready: Ready) -> Result<()> {
    match kind {
        Kind::Watchers => watchers::run(scene, ready).await,
        Kind::Slow => slow::run(scene, ready).await,
        Kind::Bodies => bodies::run(scene, ready).await,
        Kind::Unread => unread::run(scene, ready).await,
        Kind::Drops => drops::run(scene, ready).await,
        Kind::Flood => flood::run(scene, ready).await,
        // It is all of these.
        Kind::Together => Ok(()),
    }
}

/// Writes the values that are asked for and not read.
async fn fill(scene: &Scene) -> Result<()> {
    let value = "x".repeat(BIG_VALUE_BYTES);
    for number in 0..scene.size.big_bytes / BIG_VALUE_BYTES as u64 {
        let path = format!("/{BIG}{number}");
        let written = eventually("a large value is written", async || {
            let reply = scene.site(0).endpoint.request(Method::PUT, &path, value.clone()).await;
            reply.is_ok_and(|reply| reply.status == 204).then_some(())
        });
        written.await?;
        // Their followers are to keep up with them.
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

async fn term(group: &Group, leader: u64) -> Result<u64> {
    let status = group.member(leader)?.endpoint().status().await;
    let term = status.and_then(|status| status["term"].as_u64());
    term.ok_or_else(|| Failure::failed(format!("member {leader} does not say its term")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(minutes: f64) -> Options {
        Options {
            minutes,
            timing: false,
            watchers: 1,
            slow: 1,
            drops: 1,
            proposals: 1,
            unread: 1,
            big_mib: 1,
            only: None,
            brief: false,
            keep: false,
        }
    }

    #[test]
    fn a_long_run_has_rounds() {
        let plan = |minutes| options(minutes).plan();
        assert_eq!(plan(0.7), (1, Duration::from_secs(3)));
        assert_eq!(plan(10.0).0, 1);
        let (rounds, window) = plan(20.0);
        assert_eq!(rounds, 2);
        assert!(window <= LONGEST_WINDOW && window >= LONGEST_WINDOW / 2);
    }

    #[test]
    fn what_is_alone_comes_before_all_together() {
        assert_eq!(options(1.0).kinds().last(), Some(&Kind::Together));
        let only = Options { only: Some("never read".to_owned()), ..options(1.0) };
        assert_eq!(only.kinds(), [Kind::Unread]);
        let brief = Options { brief: true, ..options(1.0) };
        assert_eq!(brief.kinds().len(), SINGLE.len());
    }
}
