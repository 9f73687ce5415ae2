//! Kills, freezes and separates the members of a cluster under load.
//!
//! A round breaks the network, does something to processes in the meantime,
//! then heals and starts everything and waits until each member acknowledges
//! writes again. Every kind of fault comes before any comes twice.

mod round;

use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::time::sleep;

use crate::{
    Figures, Result,
    drive::drive_in,
    faults::network::{Broken, CLIENT_PORT, Network, address},
    finish::Finish,
    load::{self, Dice, Load, Target},
    process::{Group, Usage, UsageLog},
};

/// The answers that the clients await at least.
const ANSWERS_PER_MINUTE: u64 = 2_000;

/// What is counted, in this order, and the least that a minute must bring.
const PER_MINUTE: &[(&str, u64)] = &[
    ("rounds", 4),
    ("pauses", 1),
    ("stops", 0),
    ("partitions", 1),
    ("lossy networks", 0),
    ("slow networks", 0),
    ("snapshots installed", 0),
    (load::ANSWERED, ANSWERS_PER_MINUTE),
    ("surely not applied", 0),
    ("of unknown fate", 0),
    ("revisions", 500),
    ("acknowledged writes present", 500),
    ("answers in order", 500),
    ("gRPC answers replayed", 500),
    ("HTTP requests linearizable", 500),
    ("events watched", 1_000),
    ("watches resumed", 20),
    ("leases", 2),
    ("lease renewals", 2),
];

/// Kills in two minutes: 200 in 45.
const KILLS_IN_TWO_MINUTES: u64 = 9;

/// What to do, and for how long.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How long the faults go on.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub minutes: u64,
    /// Repeats the faults and requests of an earlier run, as far as their
    /// timing allows.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Members of the cluster.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(3..=9))]
    pub members: u64,
    /// Requests a second at the most.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: u32,
    /// Clients of plain HTTP, and as many of gRPC.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..))]
    pub clients: u32,
    /// Keeps data and logs.
    #[arg(long)]
    pub keep: bool,
    /// Tells of each round.
    #[arg(long)]
    pub verbose: bool,
}

/// Runs the job; its figures, good or bad.
///
/// # Errors
/// When it could not be run to its end.
pub fn run(binary: &Path, options: &Options) -> Result<Figures> {
    let network = Network::new(options.members)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seed = options.seed.unwrap_or(u64::from(now.subsec_nanos()) ^ now.as_secs());
    println!("chaos: {} minutes with SEED={seed}", options.minutes);
    let figures = Arc::new(Figures::new(format!("make chaos MINUTES={}", options.minutes)));
    figures.require("kills", (KILLS_IN_TWO_MINUTES * options.minutes).div_ceil(2));
    for (name, target) in PER_MINUTE {
        figures.require(name, target * options.minutes);
    }
    // Members times two revisions.
    figures.require("equal hashes", 2 * options.members);
    let places = (1..=options.members).map(|id| network.place(id)).collect::<Result<_>>()?;
    let mut group = Group::new(binary, places)?;
    // Followers that lag are to be sent snapshots.
    group.set("--snapshot-count", "100");
    group.set("--request-timeout", "2s");
    let target = |id| Target { id, address: SocketAddr::new(address(id).into(), CLIENT_PORT) };
    let run = Run {
        options,
        dice: Dice::new(seed, u64::MAX),
        targets: (1..=options.members).map(target).collect(),
        figures: &figures,
        network: &network,
        group: &mut group,
        usage: UsageLog::default(),
        recoveries: Vec::new(),
        seed,
    };
    let done = drive_in(network.clients(), || run.all());
    if options.keep {
        println!("chaos: data and logs are kept in {}", group.keep_dir().display());
    }
    done?;
    drop(group);
    Ok(Arc::into_inner(figures).unwrap_or_else(|| Figures::new("chaos")))
}

/// One run.
struct Run<'a> {
    options: &'a Options,
    seed: u64,
    dice: Dice,
    targets: Vec<Target>,
    figures: &'a Arc<Figures>,
    network: &'a Network,
    group: &'a mut Group,
    usage: UsageLog,
    /// How long after each round until all members acknowledged writes.
    recoveries: Vec<Duration>,
}

impl Run<'_> {
    async fn all(mut self) -> Result<()> {
        self.group.start_all().await?;
        let options = load::Options {
            requests_per_second: self.options.rate,
            clients: self.options.clients,
            seed: self.seed,
        };
        let mut load = Load::start(&self.targets, options, self.figures)?;
        let lasts = Duration::from_secs(60 * self.options.minutes);
        self.rounds(&mut load, lasts).await?;
        self.finish(load).await
    }

    async fn finish(self, load: Load) -> Result<()> {
        self.network.set(&Broken::default())?;
        self.group.start_all().await?;
        load.until_answered(ANSWERS_PER_MINUTE * self.options.minutes).await?;
        let figures = self.figures;
        Finish { group: &mut *self.group, targets: &self.targets, figures }.run(load).await?;
        // How often a member that lagged was sent the whole state.
        for member in self.group.members() {
            let log = std::fs::read_to_string(member.log_path()).unwrap_or_default();
            let installed = log.lines().filter(|line| line.contains("installed the snapshot of"));
            figures.count("snapshots installed", installed.count() as u64);
        }
        let longest = self.recoveries.iter().max().copied().unwrap_or_default();
        figures.count("ms until the slowest recovery", longest.as_millis() as u64);
        Ok(())
    }

    async fn rounds(&mut self, load: &mut Load, lasts: Duration) -> Result<()> {
        let start = Instant::now();
        let mut decks = round::Decks::default();
        // On a machine that is busy the rounds take longer, but not for ever.
        let figures = Arc::clone(self.figures);
        let enough =
            || ["kills", "pauses", "partitions"].iter().all(|name| figures.is_reached(name));
        while start.elapsed() < lasts || (!enough() && start.elapsed() < 2 * lasts) {
            let round = decks.draw(&mut self.dice);
            if self.options.verbose {
                println!("chaos: after {:.1} s: {round:?}", start.elapsed().as_secs_f64());
            }
            self.round(round, load).await?;
            self.figures.count("rounds", 1);
            for pid in self.group.members().iter().filter_map(|member| member.pid()) {
                if let Some(usage) = Usage::of(pid) {
                    self.usage.note(start.elapsed(), usage);
                }
            }
            sleep(Duration::from_millis(self.dice.between(200, 1_000))).await;
        }
        self.usage.check(start.elapsed(), self.figures);
        Ok(())
    }
}
