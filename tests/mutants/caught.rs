//! Every seeded bug is found: `make mutants`.
//!
//! A bug is on in a whole process, so that each is tried in processes of its
//! own: this program again, with the bug chosen by an environment variable.
//! What is tried is the simulator, and where a bug cannot show there, the model
//! or the scripts of the layer it is in. Nothing of them may fail without a bug.

#![cfg_attr(not(test), allow(dead_code, unused_imports))]

#[path = "../accused.rs"]
mod accused;
#[path = "../comparison.rs"]
mod comparison;
#[path = "../machine_model/main.rs"]
mod machine_model;
#[path = "../machine_scripts.rs"]
mod machine_scripts;
#[path = "../own_writes.rs"]
mod own_writes;
#[path = "../replica_scripts.rs"]
mod replica_scripts;
#[path = "../sim/main.rs"]
mod simulator;

use std::{
    process::{Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use metastore::{
    mutants::{Mutant, VARIABLE},
    proto::{Identity, LogPosition, Member, Members},
    raftlog::{Promises, Witnessed},
    transport::{Directory, Verdict},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How long a bug may stay undetected.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a process may go on beyond that until it is ended.
const OVERTIME: Duration = Duration::from_secs(10);

/// Fewer bugs prove too little.
const LEAST_MUTANTS: usize = 40;

/// Bugs to try instead of all, by name, with commas between.
const ONLY: &str = "MUTANTS";

/// What a process tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    Simulator,
    MachineModel,
    MachineScripts,
    ReplicaScripts,
    Directory,
    Comparison,
    Accused,
    OwnWrites,
}

impl Check {
    const ALL: [Self; 8] = [
        Self::Simulator,
        Self::MachineModel,
        Self::MachineScripts,
        Self::ReplicaScripts,
        Self::Directory,
        Self::Comparison,
        Self::Accused,
        Self::OwnWrites,
    ];

    /// The tests of this binary that it consists of.
    fn filter(self) -> &'static str {
        match self {
            Self::Simulator => "simulator_until_it_finds_something",
            Self::MachineModel => "machine_model::the_machine_over_memory_is_the_model",
            Self::MachineScripts => "machine_scripts::",
            Self::ReplicaScripts => "replica_scripts::",
            Self::Directory => "a_peer_that_lost_its_data_is_not_who_it_was",
            Self::Comparison => "comparison::",
            Self::Accused => "accused::",
            Self::OwnWrites => "own_writes::",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Simulator => "simulator",
            Self::MachineModel => "machine_model",
            Self::MachineScripts => "machine_scripts",
            Self::ReplicaScripts => "replica_scripts",
            Self::Directory => "directory",
            Self::Comparison => "comparison",
            Self::Accused => "accused",
            Self::OwnWrites => "own_writes",
        }
    }

    /// Where a bug is to show.
    fn of(mutant: Mutant) -> Self {
        match mutant {
            // What a transaction answers is the model's to say.
            Mutant::CompareAfterWrites | Mutant::RefusedTxnKeepsWrites | Mutant::CountIsPage => {
                Self::MachineModel
            }
            // What a leader never proposes, the state machine must still refuse.
            Mutant::ExpireRenewed
            | Mutant::ExpireOfFormerLeader
            | Mutant::CheckpointTakesBackRenewal
            | Mutant::IgnoreNoSpace => Self::MachineScripts,
            // One message at the wrong moment, which takes thousands of seeds.
            Mutant::LeaveBeforeOthersKnow
            | Mutant::TellOfOwnRemoval
            | Mutant::PromoteTooEarly
            | Mutant::TwoChangesAtOnce
            | Mutant::CampaignWhileRestoring
            | Mutant::BelieveMalformed
            | Mutant::LeadDespiteStall
            | Mutant::LeadDespiteApplyStall
            | Mutant::AskOneSuccessor
            | Mutant::LeadDespiteCorruption
            | Mutant::ForgetWhatWasHeard
            | Mutant::ProposeUnknown
            | Mutant::NoFlowControl => Self::ReplicaScripts,
            Mutant::AccuseWithoutMajority => Self::Comparison,
            Mutant::ServeDespiteCorruption => Self::Accused,
            Mutant::AnswerBeforeApplied => Self::OwnWrites,
            Mutant::AcceptWrongIncarnation => Self::Directory,
            _ => Self::Simulator,
        }
    }
}

/// What came of a process.
enum Ending {
    /// It ended well.
    Passed,
    /// It failed: on which seed, if it was the simulator, and why.
    Failed(Option<u64>, String),
    /// It did not end.
    Hung,
}

#[cfg(not(test))]
fn main() {
    println!("run this with: make mutants");
}

#[test]
fn the_tests_find_every_mutant() {
    let only = std::env::var(ONLY).unwrap_or_default();
    let named = |mutant: &Mutant| only.split(',').any(|name| name == format!("{mutant:?}"));
    let chosen: Vec<Mutant> =
        Mutant::ALL.iter().copied().filter(|mutant| only.is_empty() || named(mutant)).collect();
    assert!(!chosen.is_empty(), "{ONLY}={only} names no mutant");
    assert!(!only.is_empty() || chosen.len() >= LEAST_MUTANTS, "only {} mutants", chosen.len());
    let controls = Check::ALL.map(|check| (None, check));
    let mutated = chosen.iter().map(|mutant| (Some(*mutant), Check::of(*mutant)));
    let runs: Vec<(Option<Mutant>, Check)> = controls.into_iter().chain(mutated).collect();
    println!("{:<28} {:<16} {:>5} {:>8}  why", "mutant", "check", "seed", "seconds");
    let wrong = in_parallel(&runs);
    assert!(wrong.is_empty(), "{} of {} runs went wrong: {wrong:?}", wrong.len(), runs.len());
    println!("caught {} of {} mutants; no check fails without one", chosen.len(), chosen.len());
}

/// The simulator, seed after seed, for as long as a bug may stay undetected.
#[test]
#[ignore = "part of the_tests_find_every_mutant"]
fn simulator_until_it_finds_something() {
    let until = Instant::now() + PATIENCE;
    for seed in 0.. {
        println!("seed {seed}");
        if let Err(why) = simulator::run(seed, None) {
            panic!("{why}");
        }
        if Instant::now() >= until {
            return;
        }
    }
}

#[test]
fn a_peer_that_lost_its_data_is_not_who_it_was() {
    let member = |id| Member { id, incarnation: 10 * id, ..Member::default() };
    let members =
        Members { cluster_id: 7, members: vec![member(1), member(2)], removed_ids: vec![] };
    let identity = Identity { cluster_id: 7, member_id: 1, incarnation: 10 };
    let directory = Directory::new(identity, Arc::new(members));
    assert_eq!(directory.check(2, 20), Verdict::Known);
    assert_eq!(directory.check(2, 21), Verdict::WrongIncarnation);
    assert_eq!(directory.check(3, 30), Verdict::Unknown);

    // Nor is one that comes back with less of it than it had.
    let had = |term, index| Promises { term, vote: 2, last: LogPosition { index, term } };
    let heard = members_promise(2, &had(3, 9));
    directory.witness(Promises::default(), Arc::new(heard));
    assert_eq!(directory.outdated(2, &had(3, 9)), None);
    for older in [had(2, 9), had(3, 8)] {
        assert_eq!(directory.outdated(2, &older), Some(had(3, 9)));
    }
}

fn members_promise(member: u64, promises: &Promises) -> Witnessed {
    let mut witnessed = Witnessed::default();
    witnessed.learn(member, promises);
    witnessed
}

/// Carries out all runs, as many at a time as there are cores, and tells of
/// each. Returns those that did not end as they must.
fn in_parallel(runs: &[(Option<Mutant>, Check)]) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let wrong = Mutex::new(Vec::new());
    let work = || {
        while let Some((mutant, check)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let begun = Instant::now();
            let ending = run(*mutant, *check);
            let seconds = begun.elapsed().as_secs_f64();
            let name = mutant.map_or("none".to_owned(), |mutant| format!("{mutant:?}"));
            let (seed, why, is_right) = match ending {
                Ending::Passed => (None, "passed".to_owned(), mutant.is_none()),
                Ending::Failed(seed, why) => (seed, why, mutant.is_some()),
                Ending::Hung => (None, "did not end".to_owned(), false),
            };
            let seed = seed.map_or("-".to_owned(), |seed| seed.to_string());
            let mark = if is_right { "" } else { "WRONG: " };
            println!("{name:<28} {:<16} {seed:>5} {seconds:>8.1}  {mark}{why}", check.name());
            if !is_right {
                wrong.lock().expect("pushing does not panic").push(name);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, |cores| cores.get()) {
            scope.spawn(work);
        }
    });
    wrong.into_inner().expect("pushing does not panic")
}

/// Tries one bug, or none, in a process of its own.
fn run(mutant: Option<Mutant>, check: Check) -> Ending {
    let mut command = Command::new(std::env::current_exe().expect("a test knows its path"));
    command.args([check.filter(), "--include-ignored", "--nocapture", "--test-threads=1"]);
    command.env_remove("UPDATE_GOLDENFILES").env_remove("RUST_BACKTRACE").env_remove(VARIABLE);
    command.envs(mutant.map(|mutant| (VARIABLE, format!("{mutant:?}"))));
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.expect("start this program again");
    let pid = Pid::from_raw(child.id().cast_signed());
    let (sender, ended) = mpsc::channel();
    let waiting = thread::spawn(move || {
        let output = child.wait_with_output();
        // Nobody listens any more to one that was ended.
        let _late = sender.send(output);
    });
    let output = ended.recv_timeout(PATIENCE + OVERTIME);
    if output.is_err() {
        kill(pid, Signal::SIGKILL).expect("end a process of our own");
    }
    waiting.join().expect("waiting does not panic");
    match output {
        Ok(output) => ending(&output.expect("the output of a process")),
        Err(_) => Ending::Hung,
    }
}

fn ending(output: &Output) -> Ending {
    let told = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        assert!(!told.contains("running 0 tests"), "there is no such check: {told}");
        return Ending::Passed;
    }
    let mut seeds =
        told.lines().filter_map(|line| line.rsplit_once("seed ")?.1.trim().parse().ok());
    // What follows the place of the panic.
    let why = complaints.lines().skip_while(|line| !line.contains("panicked at")).nth(1);
    let why = why.map_or_else(|| output.status.to_string(), |why| why.chars().take(150).collect());
    Ending::Failed(seeds.next_back(), why)
}
