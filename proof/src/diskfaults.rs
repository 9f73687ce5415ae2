//! Breaks the disks of members in every way but a power cut.
//!
//! A round is one kind of fault on a cluster of its own: a full disk at one
//! write site after the other, errors of writes, syncs and reads, syncs that
//! take seconds, writes that fall short, and bits that turned over while a
//! member was down. The kinds take turns.

mod bench;
mod errors;
mod flips;
mod full;
mod slow;

use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{Figures, Result, drive::drive, faults::damage::Victim, report::During};
use bench::Bench;

/// What to do, and how often.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Rounds in all; the kinds of faults take turns.
    #[arg(long, default_value_t = KINDS.len() as u64)]
    pub rounds: u64,

    /// Write sites that a round with a full disk tries at most; the rounds of
    /// a run share them all.
    #[arg(long, default_value_t = u64::MAX)]
    pub sites: u64,

    /// What the dice begin with [default: chance].
    #[arg(long)]
    pub seed: Option<u64>,

    /// Only rounds of this kind, by its name in the output.
    #[arg(long)]
    pub only: Option<String>,
}

impl Default for Options {
    /// Every kind of fault once, at all sites.
    fn default() -> Self {
        Self { rounds: KINDS.len() as u64, sites: u64::MAX, seed: None, only: None }
    }
}

/// A kind of round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A full disk at one write site after the other, from the first start on.
    Full,
    /// The same for a member that joins and receives a snapshot.
    FullJoiner,
    /// The same, once, for the leader under load.
    FullLeader,
    /// A failed write or sync.
    Error,
    /// A failed sync of the only member.
    SyncErrorAlone,
    /// Failed reads.
    ReadError,
    /// Syncs of the leader that take seconds.
    SlowSync,
    /// Writes that take half of what they are given.
    ShortWrites,
    /// A bit turned over in a member of three.
    Flip(Victim),
    /// A bit turned over in the only member.
    FlipAlone(Victim),
    /// A bit turned over in a table that is about to be sent in a snapshot.
    FlipSent,
}

const KINDS: [Kind; 20] = [
    Kind::Full,
    Kind::FlipAlone(Victim::RaftWal),
    Kind::SlowSync,
    Kind::Flip(Victim::StateSst),
    Kind::SyncErrorAlone,
    Kind::FullJoiner,
    Kind::Flip(Victim::RaftWal),
    Kind::Error,
    Kind::Flip(Victim::Watermark),
    Kind::ReadError,
    Kind::Flip(Victim::Manifest),
    Kind::FullLeader,
    Kind::FlipAlone(Victim::RaftWalTail),
    Kind::ShortWrites,
    Kind::Flip(Victim::Current),
    Kind::Flip(Victim::RaftSst),
    Kind::FlipSent,
    Kind::Flip(Victim::RaftWalTail),
    Kind::Flip(Victim::Snapshot),
    Kind::Flip(Victim::Options),
];

impl Kind {
    fn name(self) -> String {
        match self {
            Self::Full => "full disk".to_owned(),
            Self::FullJoiner => "full disk of a joiner".to_owned(),
            Self::FullLeader => "full disk of the leader".to_owned(),
            Self::Error => "failed write or sync".to_owned(),
            Self::SyncErrorAlone => "failed sync, alone".to_owned(),
            Self::ReadError => "failed reads".to_owned(),
            Self::SlowSync => "slow syncs".to_owned(),
            Self::ShortWrites => "short writes".to_owned(),
            Self::Flip(victim) => format!("bit flip in {victim}"),
            Self::FlipAlone(victim) => format!("bit flip in {victim}, alone"),
            Self::FlipSent => "bit flip in a snapshot that is sent".to_owned(),
        }
    }
}

/// Which of the rounds of one kind this is.
#[derive(Debug, Clone, Copy)]
struct Turn {
    /// From 0.
    number: u64,
    of: u64,
}

/// Runs the job; its figures, good or bad.
///
/// # Errors
/// When it could not be run to its end.
pub fn run(binary: &Path, options: &Options) -> Result<Figures> {
    let figures = Figures::new(format!("diskfaults --rounds {}", options.rounds));
    let seed = options.seed.unwrap_or_else(|| rand::rng().random());
    println!("diskfaults: seed {seed}");
    figures.require("rounds", options.rounds);
    if options.only.is_none() {
        figures.require("acknowledged writes checked", options.rounds * 20);
        let cycles = options.rounds / KINDS.len() as u64;
        for name in ["full disks", "failed calls", "stalled leaders", "short writes", "bit flips"] {
            figures.require(name, cycles);
        }
    }
    drive(async {
        let chosen = |kind: &Kind| options.only.as_ref().is_none_or(|only| *only == kind.name());
        let kinds: Vec<Kind> = KINDS.into_iter().filter(chosen).collect();
        let count = kinds.len().max(1) as u64;
        for (round, kind) in (0..options.rounds).zip(kinds.iter().cycle()) {
            let turn = Turn {
                number: round / count,
                of: options.rounds / count + u64::from(round % count < options.rounds % count),
            };
            let dice = ChaCha8Rng::seed_from_u64(seed.wrapping_add(round));
            let mut bench = Bench { binary, figures: &figures, dice, sites: options.sites };
            let what = format!("round {} of {}: {}", round + 1, options.rounds, kind.name());
            eprintln!("diskfaults: {what}");
            bench.run(*kind, turn).await.during(&what)?;
            figures.count("rounds", 1);
        }
        Ok(())
    })?;
    Ok(figures)
}

impl Bench<'_> {
    async fn run(&mut self, kind: Kind, turn: Turn) -> Result<()> {
        match kind {
            Kind::Full => full::alone(self, turn).await,
            Kind::FullJoiner => full::joiner(self, turn).await,
            Kind::FullLeader => full::leader(self).await,
            Kind::Error => errors::of_a_change(self, turn).await,
            Kind::SyncErrorAlone => errors::of_a_sync_alone(self).await,
            Kind::ReadError => errors::of_reads(self).await,
            Kind::SlowSync => slow::leader(self, turn).await,
            Kind::ShortWrites => slow::short_writes(self).await,
            Kind::Flip(victim) => flips::while_down(self, victim, 3).await,
            Kind::FlipAlone(victim) => flips::while_down(self, victim, 1).await,
            Kind::FlipSent => flips::sent(self).await,
        }
    }
}
