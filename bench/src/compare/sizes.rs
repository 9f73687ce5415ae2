//! What changes as data grow: memory, a start, the rate of writes, and what a
//! member that comes back costs the others.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use metastore_bench::{Options, Workload};

use super::{
    MEMBERS, Result, Stop,
    cluster::{Cluster, Store, until_it_answers},
    rows::{BUSY, KEY_SPACE, fill, options, run},
    table::{Quantity, Table, mib},
};

/// Keys with which memory and a start are measured.
const MANY_KEYS: u64 = 1_000_000;

/// Keys with which writes are measured once more.
const MOST_KEYS: u64 = 3_000_000;

/// What is written while a member is away: a gibibyte, in values so large that
/// it does not take long.
const AWAY_KEYS: u64 = 65_536;
const AWAY_VALUE_BYTES: usize = 16 << 10;

/// Writes a second beside a member that catches up: few enough that it is the
/// catching up which disturbs them.
const RATE: u64 = 500;

/// One of the loads beside a member that catches up.
const BESIDE: Duration = Duration::from_secs(2);

/// How long a member may take to catch up.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(300);

/// Measures a store with more and more keys, and adds the values to the table.
///
/// # Errors
/// When it cannot be run.
pub fn measure(store: Store, program: &Path, measured: Duration, table: &mut Table) -> Result<()> {
    let mut cluster = Cluster::start(store, program, MEMBERS)?;
    fill(&cluster, KEY_SPACE)?;
    let few = put(&cluster, KEY_SPACE, measured)?;
    fill(&cluster, MANY_KEYS)?;
    table.add_value(store, "memory, 1,000,000 keys", Quantity::Mib, mib(cluster.memory()?));
    cluster.stop_all()?;
    let start = cluster.start_all()?;
    table.add_value(store, "start, 1,000,000 keys", Quantity::Ms, start.as_secs_f64() * 1e3);
    fill(&cluster, MOST_KEYS)?;
    let most = put(&cluster, MOST_KEYS, measured)?;
    table.add_value(store, "put, 3,000,000 keys", Quantity::PerSecond, most);
    table.add_value(store, "put, 3,000,000 keys", Quantity::PercentOfFew, 100.0 * most / few);
    eprintln!(
        "  with 1,000,000 keys a start took {start:?}; with 3,000,000 put {most:.0} a second"
    );
    Ok(())
}

/// Measures what a member that comes back costs the writes of the others, and
/// how fast it gets what it missed.
///
/// # Errors
/// When it cannot be run.
pub fn catch_up(store: Store, program: &Path, table: &mut Table) -> Result<()> {
    let mut cluster = Cluster::start(store, program, MEMBERS)?;
    fill(&cluster, KEY_SPACE)?;
    let away = cluster.follower()?;
    cluster.stop(away)?;
    let large = Options {
        value_size: AWAY_VALUE_BYTES,
        key_space: AWAY_KEYS,
        ..options(&cluster, Workload::Fill, 64)
    };
    run("fill without a member", large)?;
    // Of the others all the time: what the member that comes back answers, it
    // has to have caught up for.
    let beside = Options {
        rate: Some(RATE),
        duration: BESIDE,
        warm_up: Duration::ZERO,
        ..options(&cluster, Workload::Put, 64)
    };
    let undisturbed = p99(&beside)?;
    let begun = Instant::now();
    cluster.start_one(away)?;
    let endpoint = cluster.endpoint(away);
    let waiting = thread::spawn(move || until_it_answers(&endpoint, begun + CATCH_UP_LIMIT));
    // Each of them begins while it is not there yet.
    let mut disturbed: f64 = 0.0;
    while !waiting.is_finished() {
        disturbed = disturbed.max(p99(&beside)?);
    }
    let answered = waiting.join().ok().flatten();
    let answered = answered.ok_or_else(|| Stop::Failed("a member does not catch up".into()))?;
    let took = answered - begun;
    let bytes = AWAY_KEYS * AWAY_VALUE_BYTES as u64;
    let rate = mib(bytes) / took.as_secs_f64();
    let name = "1 GiB missed by a member";
    table.add_value(store, name, Quantity::MibPerSecond, rate);
    table.add_value(store, name, Quantity::TimesUndisturbed, disturbed / undisturbed);
    eprintln!(
        "  a member that missed 1 GiB was back after {took:?}; p99 of puts {:.1} ms, before {:.1} ms",
        disturbed / 1e3,
        undisturbed / 1e3
    );
    Ok(())
}

/// The 99th percentile of these writes, in microseconds.
fn p99(load: &Options) -> Result<f64> {
    Ok(run("put beside a catch-up", load.clone())?.figures.latency_us.p99)
}

fn put(cluster: &Cluster, key_space: u64, duration: Duration) -> Result<f64> {
    let load = Options { key_space, duration, ..options(cluster, Workload::Put, BUSY) };
    Ok(run("put", load)?.figures.per_second)
}
