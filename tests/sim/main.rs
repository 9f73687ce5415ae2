//! A deterministic simulation of whole clusters.
//!
//! The `Replica` and the `StateMachine` of production run here over databases
//! in memory that lose unsynced writes in a crash, a network that loses,
//! doubles, reorders and cuts, and clocks, disks and processes that stall.
//! One seed stands for one run, to the last message.
//!
//! Each member has its watch hub and its lease keeper, too. Clients of etcd's
//! kind write, compact, grant and renew, others watch and go on elsewhere when
//! their member is gone. All they are told is held against the applied log.
//!
//! `SIM_SEEDS` is how many seeds are run, `SIM_FIRST` the first of them;
//! `SIM_SEED` runs just that one. `SIM_TRACE` is how many lines of its trace a
//! failure shows.

mod applying;
mod checks;
mod client;
mod dice;
mod disk;
mod etcd;
mod history;
mod leasing;
mod lives;
mod marks;
mod nemesis;
mod network;
mod node;
mod notes;
mod oracle;
mod plan;
mod requests;
mod rollback;
mod sim;
mod watchers;
mod watching;
mod world;

use std::{
    any::Any,
    cell::Cell,
    collections::VecDeque,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, Mutex, Once,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use sim::{Tally, TraceTail};
use world::{Report, World};

const DEFAULT_SEEDS: u64 = 500;

/// What so many runs must at least have gone through on average, in
/// thousandths, to be worth their name.
const EXPECTED: &[(&str, u64)] = &[
    ("operations explained", 100_000),
    ("writes", 50_000),
    ("reads", 20_000),
    ("unknown", 500),
    ("not applied", 500),
    ("forwarded", 20_000),
    ("overloaded", 1_000),
    ("displaced by another leader's entry", 100),
    ("messages lost", 100_000),
    ("messages doubled", 100_000),
    ("messages reordered", 100_000),
    ("messages held up", 50_000),
    ("crashes", 500),
    ("graceful stops", 50),
    ("symmetric partitions", 200),
    ("asymmetric partitions", 200),
    ("pauses", 100),
    ("slow disks", 100),
    ("clock jumps", 100),
    ("disk errors", 50),
    ("crashes over a replaced log", 20),
    ("disks wiped", 20),
    ("older copies refused", 20),
    ("log reads from disk", 1_000),
    ("snapshots made", 500),
    ("snapshots received", 50),
    ("snapshots installed", 50),
    ("transfers failed", 20),
    ("members added", 100),
    ("members removed", 20),
    ("removals of the leader", 20),
    ("leader transfers", 20),
    ("terms with a leader", 1_500),
    ("state hashes compared", 1_000),
    ("marks applied", 5_000),
    ("states at marks compared", 10_000),
    ("pasts compared", 1_000),
    ("requests of etcd answered", 20_000),
    ("transactions that wrote", 5_000),
    ("compactions", 1_000),
    ("events told", 50_000),
    ("pages read", 10_000),
    ("progress told", 3_000),
    ("watch streams lost", 500),
    ("watches ended by a compaction", 500),
    ("watches cancelled", 500),
    ("batches that the hub missed", 5_000),
    ("keep-alives answered", 5_000),
    ("leases said not to exist", 2_000),
    ("leases granted", 1_000),
    ("leases expired", 500),
    ("leases revoked", 500),
    ("leases checkpointed", 1_000),
    ("leases renewed in the log", 500),
    ("lease changes lost", 50),
    ("runs repeated", 80),
];

/// What every single run must have gone through, however unlucky.
const EXPECTED_OF_EACH: &[(&str, u64)] = &[
    ("virtual seconds", 20),
    ("operations explained", 5),
    ("writes", 1),
    ("reads", 1),
    ("requests of etcd answered", 1),
    ("terms with a leader", 1),
    ("comparisons", 100),
    ("pasts compared", 1),
];

/// One run in so many is repeated, and must be the same to the last message.
const REPEATED: u64 = 10;

/// From how many runs on the averages are judged.
const ENOUGH_RUNS: u64 = 100;

#[test]
fn clusters_stay_linearizable_whatever_happens() {
    let (first, count) = match number("SIM_SEED") {
        Some(seed) => (seed, 1),
        None => (number("SIM_FIRST").unwrap_or(0), number("SIM_SEEDS").unwrap_or(DEFAULT_SEEDS)),
    };
    assert!(count > 0, "no seed to run");
    let begun = Instant::now();
    let next = AtomicU64::new(first);
    let total = Mutex::new(Tally::default());
    let failed = Mutex::new(Vec::new());
    let threads = thread::available_parallelism().map_or(2, |cores| cores.get());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return;
            }
            match run_well(seed) {
                Ok(report) => {
                    let mut total = total.lock().expect("adding does not panic");
                    report.tally.0.into_iter().for_each(|(what, count)| total.add(what, count));
                }
                Err(why) => failed.lock().expect("pushing does not panic").push((seed, why)),
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let mut failed = failed.into_inner().expect("pushing does not panic");
    failed.sort();
    let total = total.into_inner().expect("adding does not panic");
    if let Some((seed, why)) = failed.first() {
        let seeds: Vec<u64> = failed.iter().map(|(seed, _)| *seed).collect();
        for (seed, why) in &failed {
            println!("seed {seed}: {}", why.lines().next().unwrap_or_default());
        }
        let trace = trace_of(*seed);
        panic!(
            "{} of {count} seeds failed: {seeds:?}\n{trace}\nseed {seed}: {why}\n\
             replay it with: make sim SEEDS=1 SEED={seed}",
            seeds.len()
        );
    }
    for (what, count) in &total.0 {
        println!("{count:>12} {what}");
    }
    assert_eq!(total.of("runs"), count, "not all runs were made");
    assert_worth_its_name(&total);
    tell_row(&total, begun.elapsed());
}

/// What was survived, as a row of a table.
fn tell_row(total: &Tally, took: Duration) {
    let of = |what| total.of(what);
    println!(
        "| `make sim SEEDS={}` | {} crashes, {} partitions ({} of them one-way), {} pauses, \
         {} slow and {} failing disks, {} wiped, {} older copies refused, {} clock jumps, \
         {} members added and {} removed, {} of {} messages lost | {} operations linearizable, \
         {} events of watches, {} leases expired in time, {} equal states, {} of them at marks; \
         {} runs repeated \
         alike; back within {} ms on average \
         | {} hours of virtual time in {} s |",
        of("runs"),
        of("crashes"),
        of("partitions"),
        of("asymmetric partitions"),
        of("pauses"),
        of("slow disks"),
        of("disk errors"),
        of("disks wiped"),
        of("older copies refused"),
        of("clock jumps"),
        of("members added"),
        of("members removed"),
        of("messages lost"),
        of("messages"),
        of("operations explained"),
        of("events told"),
        of("leases expired"),
        of("state hashes compared") + of("states at marks compared"),
        of("states at marks compared"),
        of("runs repeated"),
        of("recovery ms") / of("runs"),
        of("virtual seconds") / 3_600,
        took.as_secs(),
    );
}

#[test]
fn the_same_seed_replays_the_same_run() {
    for seed in [3, 14, 159, 2_653] {
        let hash =
            |seed| run(seed, None).unwrap_or_else(|why| panic!("seed {seed}: {why}")).trace_hash;
        assert_eq!(hash(seed), hash(seed), "two runs of seed {seed} differ");
        assert_ne!(hash(seed), hash(seed + 1), "seed {seed} and the next are the same run");
    }
}

/// Runs that do nothing prove nothing.
fn assert_worth_its_name(total: &Tally) {
    let runs = total.of("runs");
    if runs < ENOUGH_RUNS {
        return;
    }
    for (what, thousandths) in EXPECTED {
        assert!(
            total.of(what) * 1_000 >= runs * thousandths,
            "only {} {what} in {runs} runs: the simulation no longer exercises them",
            total.of(what)
        );
    }
}

/// Runs a seed, some seeds twice, and sees that it was worth it.
fn run_well(seed: u64) -> Result<Report, String> {
    let mut report = run(seed, None)?;
    for (what, least) in EXPECTED_OF_EACH {
        let count = report.tally.of(what);
        if count < *least {
            return Err(format!("only {count} {what}: the run proves nothing"));
        }
    }
    if seed.is_multiple_of(REPEATED) {
        if run(seed, None)?.trace_hash != report.trace_hash {
            return Err("the same seed made another run".to_owned());
        }
        report.tally.add("runs repeated", 1);
    }
    Ok(report)
}

/// Runs a seed, and writes its trace if anybody wants it.
///
/// # Errors
/// What did not hold.
pub fn run(seed: u64, tail: Option<TraceTail>) -> Result<Report, String> {
    let run = AssertUnwindSafe(|| World::new(seed, tail).run());
    quietly(|| panic::catch_unwind(run)).map_err(|cause| message(cause.as_ref()))
}

/// Runs a failed seed once more, this time writing its trace.
fn trace_of(seed: u64) -> String {
    let tail = Arc::new(Mutex::new(VecDeque::new()));
    let again = run(seed, Some(tail.clone()));
    let lines: Vec<String> = tail.lock().expect("no thread writes now").drain(..).collect();
    let again = again.err().unwrap_or_else(|| "this time nothing".to_owned());
    format!("the end of its trace:\n{}\nwhat failed: {again}", lines.join("\n"))
}

fn message(cause: &(dyn Any + Send)) -> String {
    let text = cause.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| cause.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked without a word").to_owned()
}

/// Keeps the panics of this thread, which are caught and told later, from
/// being written to stderr.
fn quietly<T>(work: impl FnOnce() -> T) -> T {
    thread_local!(static QUIET: Cell<bool> = const { Cell::new(false) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() || std::env::var_os("RUST_BACKTRACE").is_some() {
                loud(panic);
            }
        }));
    });
    QUIET.set(true);
    let result = work();
    QUIET.set(false);
    result
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {text:?}")))
}
