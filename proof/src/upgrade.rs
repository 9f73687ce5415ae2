//! Upgrades a cluster under load, member by member, and takes a step back.
//!
//! A round founds a cluster of the previous version and stops, exchanges and
//! starts one member after the other. In between, while both versions are
//! there, each of them leads the other, each sends the other a snapshot, and
//! one member goes back to the previous version and forth again. At no moment
//! may a client see anything of it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rand::RngExt;

use crate::{
    Failure, Figures, Result,
    drive::drive,
    finish::Finish,
    load::{self, Dice, Load, Target},
    process::{Group, eventually, find_binary},
    report::During,
};

/// Members of the cluster.
const MEMBERS: u64 = 3;

/// How long a member may take to stop, as the contract promises.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// The answers that a round's clients await at least. What is checked of them
/// depends on their number alone, and is less than they bring by a third.
const ANSWERS_PER_ROUND: u64 = 1_000;

/// What is counted, in this order, and the least that a round must bring.
const PER_ROUND: &[(&str, u64)] = &[
    ("rounds", 1),
    ("upgrades", MEMBERS + 1),
    ("steps back", 1),
    ("writes acknowledged by a member of a mixed cluster", 4 * MEMBERS),
    ("mixed clusters led by the new version", 1),
    ("mixed clusters led by the previous version", 1),
    ("snapshots to the new version", 1),
    ("snapshots to the previous version", 1),
    (load::ANSWERED, ANSWERS_PER_ROUND),
    ("surely not applied", 0),
    ("of unknown fate", 0),
    ("revisions", 300),
    ("acknowledged writes present", 300),
    ("answers in order", 300),
    ("gRPC answers replayed", 300),
    ("HTTP requests linearizable", 300),
    ("events watched", 500),
    ("equal hashes", 2 * MEMBERS),
];

/// What to do, and how often.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The program to upgrade from.
    #[arg(long, value_name = "PATH")]
    pub previous: PathBuf,
    /// Clusters that are upgraded, one after the other.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub rounds: u64,
    /// Repeats the requests and the order of an earlier run, as far as their
    /// timing allows.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Requests a second at the most.
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: u32,
    /// Clients of plain HTTP, and as many of gRPC.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..))]
    pub clients: u32,
    /// Keeps data and logs.
    #[arg(long)]
    pub keep: bool,
}

impl Options {
    /// One round, from this program.
    pub fn from(previous: PathBuf) -> Self {
        Self { previous, rounds: 1, seed: None, rate: 300, clients: 6, keep: false }
    }
}

/// Runs the job; its figures, good or bad.
///
/// # Errors
/// When it could not be run to its end.
pub fn run(binary: &Path, options: &Options) -> Result<Figures> {
    let given = options.previous.display();
    let missing =
        |_| Failure::not_run(format!("there is no program of a previous version: {given}"));
    let previous = find_binary(Some(&options.previous)).map_err(missing)?;
    let options = &Options { previous, ..options.clone() };
    let seed = options.seed.unwrap_or_else(|| rand::rng().random());
    println!("upgrade: from {} with SEED={seed}", options.previous.display());
    let figures = Arc::new(Figures::new(format!("make upgrade UPGRADES={}", options.rounds)));
    for (name, target) in PER_ROUND {
        figures.require(name, target * options.rounds);
    }
    drive(async {
        for number in 1..=options.rounds {
            let seed = seed.wrapping_add(number - 1);
            let what = format!("round {number} of {}, seed {seed}", options.rounds);
            eprintln!("upgrade: {what}");
            let mut round = Round::new(binary, options, (number, seed), &figures)?;
            let done = round.all().await;
            if options.keep {
                println!("upgrade: data and logs are in {}", round.group.keep_dir().display());
            }
            done.during(&what)?;
            figures.count("rounds", 1);
        }
        Ok(())
    })?;
    Ok(Arc::into_inner(figures).unwrap_or_else(|| Figures::new("upgrade")))
}

/// One cluster.
struct Round<'a> {
    /// The program of each version.
    new: &'a Path,
    previous: &'a Path,
    options: &'a Options,
    /// From 1.
    number: u64,
    seed: u64,
    group: Group,
    targets: Vec<Target>,
    figures: &'a Arc<Figures>,
}

impl<'a> Round<'a> {
    fn new(
        new: &'a Path,
        options: &'a Options,
        (number, seed): (u64, u64),
        figures: &'a Arc<Figures>,
    ) -> Result<Self> {
        let previous = &options.previous;
        let mut group = Group::on_loopback(previous, MEMBERS)?;
        // The members that come and go are to find a log that begins late.
        group.set("--snapshot-count", "100");
        group.set("--request-timeout", "2s");
        let members = group.members().iter();
        let targets = members
            .map(|member| {
                let address = SocketAddr::new(member.place().host, member.place().client_port);
                Target { id: member.id, address }
            })
            .collect();
        Ok(Self { new, previous, options, number, seed, group, targets, figures })
    }

    async fn all(&mut self) -> Result<()> {
        self.group.start_all().await.during("the previous version")?;
        let options = load::Options {
            requests_per_second: self.options.rate,
            clients: self.options.clients,
            seed: self.seed,
        };
        let mut load = Load::start(&self.targets, options, self.figures)?;
        let mut order = self.group.ids();
        Dice::new(self.seed, u64::MAX).shuffle(&mut order);
        let [first, second, third] = order[..] else {
            return Err(Failure::failed("a round takes three members"));
        };

        // One new among old ones; it follows, then it leads.
        self.upgrade(first).await?;
        self.lead(third, "mixed clusters led by the previous version").await?;
        self.write_by_all(&mut load).await?;
        self.join(MEMBERS + 1, self.new, "snapshots to the new version").await?;
        self.lead(first, "mixed clusters led by the new version").await?;
        self.write_by_all(&mut load).await?;

        // A majority of new ones, and a step back.
        self.upgrade(second).await?;
        self.write_by_all(&mut load).await?;
        self.join(MEMBERS + 2, self.previous, "snapshots to the previous version").await?;
        self.step_back(first).await?;
        self.write_by_all(&mut load).await?;
        load.until_answered(ANSWERS_PER_ROUND * self.number).await?;

        self.upgrade(first).await?;
        self.upgrade(third).await?;
        self.group.check_running()?;
        for member in self.group.members() {
            let log = member.log();
            if let Some(line) = log.lines().find(|line| line.contains("speaks protocol")) {
                self.figures.violation(format!("member {}: {line}", member.id));
            }
        }
        let figures = self.figures;
        Finish { group: &mut self.group, targets: &self.targets, figures }.run(load).await
    }

    async fn upgrade(&mut self, id: u64) -> Result<()> {
        self.exchange(id, self.new).await?;
        self.figures.count("upgrades", 1);
        Ok(())
    }

    async fn step_back(&mut self, id: u64) -> Result<()> {
        self.exchange(id, self.previous).await?;
        self.figures.count("steps back", 1);
        Ok(())
    }

    /// Stops a member and starts it as this program.
    async fn exchange(&mut self, id: u64, program: &Path) -> Result<()> {
        let what = format!("member {id} becomes {}", program.display());
        let member = self.group.member_mut(id)?;
        let code = member.stop(STOP_LIMIT).await.during(&what)?;
        if code != Some(0) {
            let log = member.log_tail();
            self.figures.violation(format!("member {id} was told to stop: {code:?}:\n{log}"));
        }
        member.set_binary(program);
        member.start()?;
        member.wait_ready().await.during(&what)
    }

    async fn lead(&self, id: u64, name: &str) -> Result<()> {
        self.group.lead(id).await.during(name)?;
        self.figures.count(name, 1);
        Ok(())
    }

    /// Every member passes a write on or proposes it itself.
    async fn write_by_all(&self, load: &mut Load) -> Result<()> {
        for target in &self.targets {
            let mut failed = None;
            eventually("a write is acknowledged", async || match load.probe(target).await {
                Ok(acknowledged) => acknowledged.then_some(()),
                Err(failure) => {
                    failed = Some(failure);
                    Some(())
                }
            })
            .await
            .during(format_args!("member {}", target.id))?;
            if let Some(failure) = failed {
                return Err(failure);
            }
            self.figures.count("writes acknowledged by a member of a mixed cluster", 1);
        }
        Ok(())
    }

    /// A member of this program joins, which takes a snapshot, and leaves again.
    async fn join(&self, id: u64, program: &Path, name: &str) -> Result<()> {
        let mut member = self.group.add_member(program, id).await.during(name)?;
        member.start()?;
        member.wait_ready().await.during(name)?;
        let log = member.log();
        let installed = log.lines().filter(|line| line.contains("installed the snapshot of"));
        self.figures.count(name, installed.count() as u64);
        self.group.remove_member(id).await.during(name)?;
        if member.wait_end(STOP_LIMIT * 4).await.during(name)? != Some(0) {
            let log = member.log_tail();
            self.figures.violation(format!("member {id} was removed and did not leave:\n{log}"));
        }
        Ok(())
    }
}
