//! All targets by name, and what each must have shown.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use metastore_proof::{Failure, Result, drive::drive, report::During};

use crate::{
    decoders::{Backups, Commands, Frames, Logs, Messages, Records, Transfers},
    memory,
    requests::{Inside, Requests},
    run::{self, Decoder, Tally},
};

/// Something to give inputs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Streams of raft messages.
    Frames,
    /// Raft messages to a member at work.
    Messages,
    /// Commands of the log.
    Commands,
    /// Records of the databases and files on disk.
    Records,
    /// Raft databases with one damaged record.
    Logs,
    /// Snapshots from another member.
    Transfers,
    /// Snapshot files.
    Backups,
    /// Whole requests.
    Requests(Requests),
}

/// Of a hundred inputs, how many must be accepted and how many refused: fewer
/// would show that they do not get far.
type Floors = (u64, u64);

impl Target {
    /// All of them.
    pub fn all() -> Vec<Self> {
        let decoders = [
            Self::Frames,
            Self::Messages,
            Self::Commands,
            Self::Records,
            Self::Logs,
            Self::Transfers,
            Self::Backups,
        ];
        decoders.into_iter().chain(Requests::ALL.map(Self::Requests)).collect()
    }

    /// The one of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(name: &str) -> std::result::Result<Self, String> {
        let all = Self::all();
        let found = all.iter().find(|target| target.name() == name);
        found.copied().ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(|target| target.name()).collect();
            format!("there is no target {name:?}; there are {}", names.join(", "))
        })
    }

    /// What it is called on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Frames => "frames",
            Self::Messages => "messages",
            Self::Commands => "commands",
            Self::Records => "records",
            Self::Logs => "logs",
            Self::Transfers => "transfers",
            Self::Backups => "backups",
            Self::Requests(requests) => requests.name(),
        }
    }

    fn floors(self) -> Floors {
        match self {
            Self::Messages => (50, 20),
            Self::Frames | Self::Records | Self::Logs => (25, 25),
            Self::Commands | Self::Transfers | Self::Backups => (10, 25),
            // On a busy machine some answers come too late to be waited for.
            Self::Requests(_) => (4, 25),
        }
    }

    /// What reads its inputs within this process: for whole requests a member of
    /// which it is told what they reach. `None` for what peers send: it names the
    /// cluster, and would say nothing to the next one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn decoder(self) -> Result<Option<Box<dyn Decoder>>> {
        Ok(Some(match self {
            Self::Frames => Box::new(Frames::new().during("start a runtime")?),
            Self::Messages => Box::new(Messages::new()?),
            Self::Commands => Box::new(Commands::new()?),
            Self::Records => Box::new(Records::new()?),
            Self::Logs => Box::new(Logs::new()?),
            Self::Transfers => Box::new(Transfers::new().during("make a receiver")?),
            Self::Backups => Box::new(Backups::new()?),
            Self::Requests(Requests::Peer) => return Ok(None),
            Self::Requests(requests) => Box::new(Inside::start(requests)?),
        }))
    }

    /// Runs the inputs of these numbers; `binary` is who gets whole requests.
    ///
    /// # Errors
    /// When it cannot be run here. What is found is in the tally.
    pub fn run(
        self,
        binary: &dyn Fn() -> Result<PathBuf>,
        seed: u64,
        inputs: Range<u64>,
        progress: &mut dyn FnMut(&Tally),
    ) -> Result<Tally> {
        if let Self::Requests(requests) = self {
            let binary = binary()?;
            let binary: &Path = &binary;
            // What is sent takes memory too, and would be taken for a decoder's.
            return memory::alone(|| drive(requests.run(binary, seed, inputs, progress)));
        }
        let none = || Failure::failed(format!("nothing reads {}", self.name()));
        let mut decoder = self.decoder()?.ok_or_else(none)?;
        Ok(run::run(decoder.as_mut(), seed, inputs, progress))
    }

    /// The verdict on a run.
    ///
    /// # Errors
    /// When an input failed, when fewer ran than were asked for, or when too few
    /// of them got far.
    pub fn judge(self, tally: &Tally) -> Result<()> {
        let Tally { asked, ran, accepted, refused, failures, seed, .. } = *tally;
        let name = self.name();
        let mut wrong = Vec::new();
        for finding in &tally.findings {
            wrong.push(format!(
                "{}\n    again: metastore-fuzz --target {name} --seed {seed} --input {}\n    \
                 smaller: {}",
                finding.what, finding.input, finding.minimal
            ));
        }
        if failures > 0 {
            wrong.push(format!("{failures} inputs failed"));
        }
        if ran < asked {
            wrong.push(format!("only {ran} inputs of {asked} were read"));
        }
        // Of a few inputs none may get far.
        if asked >= 1000 {
            let (most, least) = self.floors();
            for (count, floor, what) in [(accepted, most, "accepted"), (refused, least, "refused")]
            {
                if count * 100 < ran * floor {
                    wrong.push(format!("only {count} of {ran} inputs were {what}"));
                }
            }
        }
        if wrong.is_empty() {
            return Ok(());
        }
        Err(Failure::failed(format!("{name}: {}", wrong.join("\n  "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{Finding, Verdict};

    fn tally(accepted: u64, refused: u64) -> Tally {
        let mut tally = Tally::new("frames", 1, 1000);
        (0..accepted).for_each(|_| tally.count(Verdict::Accepted));
        (0..refused).for_each(|_| tally.count(Verdict::Refused));
        tally
    }

    #[test]
    fn too_few_too_shallow_and_any_failure_are_told() {
        let target = Target::Frames;
        assert_eq!(target.judge(&tally(500, 500)), Ok(()));
        let why = |tally: &Tally| target.judge(tally).expect_err("not enough").to_string();
        assert!(why(&tally(499, 500)).contains("only 999 inputs of 1000"));
        assert!(why(&tally(1, 999)).contains("only 1 of 1000 inputs were accepted"));
        assert!(why(&tally(999, 1)).contains("only 1 of 1000 inputs were refused"));
        let mut failed = tally(500, 499);
        let what = "a panic".to_owned();
        failed.fail(Finding { input: 7, what, minimal: String::new() });
        assert!(why(&failed).contains("--target frames --seed 1 --input 7"));
    }

    #[test]
    fn targets_are_found_by_their_names() {
        for target in Target::all() {
            assert_eq!(Target::named(target.name()), Ok(target));
        }
        assert!(Target::named("nothing").is_err_and(|why| why.contains("frames, messages")));
    }
}
