//! The loads, and what is taken from each.

use std::{fmt, time::Duration};

use metastore_bench::{Api, Consistency, Options, Report, Workload};

use super::{
    Result, Stop,
    cluster::{Cluster, Store},
};

/// Keys of all loads.
pub const KEY_SPACE: u64 = 100_000;

/// Before the measured time of each load.
const WARM_UP: Duration = Duration::from_secs(1);

/// A load.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Its name in the table.
    pub name: &'static str,
    workload: Workload,
    api: Api,
    clients: u64,
    consistency: Consistency,
    rate: Option<u64>,
}

/// Clients of a load that is as much as can be.
pub const BUSY: u64 = 256;

const fn load(name: &'static str, workload: Workload, clients: u64) -> Load {
    let (api, consistency) = (Api::Grpc, Consistency::Linearizable);
    Load { name, workload, api, clients, consistency, rate: None }
}

/// Writes a second that are watched while the latency of events is measured.
const WATCHED_RATE: u64 = 20;

/// All loads, in the order in which they run.
pub const LOADS: [Load; 9] = [
    load("put, 256 clients", Workload::Put, BUSY),
    Load { api: Api::Http, ..load("put over HTTP, 256 clients", Workload::Put, BUSY) },
    load("put, 1 client", Workload::Put, 1),
    load("linearizable read, 256 clients", Workload::Range, BUSY),
    Load {
        consistency: Consistency::Serializable,
        ..load("serializable read, 256 clients", Workload::Range, BUSY)
    },
    load("list of 10,000 keys, 8 clients", Workload::List, 8),
    load("compare and put or read, 256 clients", Workload::Txn, BUSY),
    load("watch, 1,000 watchers, 64 clients write", Workload::Watch, 64),
    Load {
        rate: Some(WATCHED_RATE),
        ..load("watch, 1,000 watchers, 20 writes a second", Workload::Watch, 8)
    },
];

/// What a load came to.
#[derive(Debug)]
pub struct Measured {
    /// The load's name.
    pub name: &'static str,
    /// What the clients saw.
    pub report: Report,
    /// What the members took of the processors for one operation; for the
    /// warm-up too, which is counted.
    pub cpu_per_operation: Duration,
}

impl Load {
    /// Whether it is to be run on this store.
    pub fn is_wanted(&self, store: Store, only: &str) -> bool {
        let is_spoken = store == Store::Metastore || self.api == Api::Grpc;
        is_spoken && self.name.contains(only)
    }

    /// Runs it.
    ///
    /// # Errors
    /// When nothing succeeded.
    pub fn run(&self, cluster: &Cluster, measured: Duration) -> Result<Measured> {
        let options = Options {
            api: self.api,
            duration: measured,
            rate: self.rate,
            consistency: self.consistency,
            ..options(cluster, self.workload, self.clients)
        };
        let before = cluster.cpu()?;
        let report = run(self.name, options)?;
        let cpu = cluster.cpu()? - before;
        let whole = WARM_UP + measured;
        let done = match &report.puts {
            // Nothing of it is warm-up.
            Some(_) => report.figures.operations as f64,
            None => report.figures.per_second * whole.as_secs_f64(),
        };
        let cpu_per_operation = cpu.div_f64(done.max(1.0));
        Ok(Measured { name: self.name, report, cpu_per_operation })
    }
}

/// What all loads have in common: so many clients on eight connections to the
/// members that run, values of 256 bytes.
pub fn options(cluster: &Cluster, workload: Workload, clients: u64) -> Options {
    Options {
        workload,
        endpoints: cluster.endpoints(),
        api: Api::Grpc,
        connections: 8,
        clients,
        threads: 0,
        total: None,
        duration: WARM_UP,
        warm_up: WARM_UP,
        rate: None,
        key_size: 18,
        value_size: 256,
        key_space: KEY_SPACE,
        consistency: Consistency::Linearizable,
        list_keys: 10_000,
        read_percent: 90,
        watchers: 1_000,
    }
}

/// Does a run, which is called so if it fails.
///
/// # Errors
/// When nothing succeeded.
pub fn run(name: &str, options: Options) -> Result<Report> {
    metastore_bench::run(options).map_err(|failure| Stop::Failed(format!("{name}: {failure}")))
}

/// Writes so many keys, each once.
///
/// # Errors
/// When that fails.
pub fn fill(cluster: &Cluster, key_space: u64) -> Result<()> {
    run("fill", Options { key_space, ..options(cluster, Workload::Fill, BUSY) }).map(drop)
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figures = &self.report.figures;
        write!(
            f,
            "{}: {:.0} a second, p50 {:.2} ms, p99 {:.2} ms; members {:.0} µs each, client {:.0} % \
             of a processor",
            self.name,
            figures.per_second,
            figures.latency_us.p50 / 1e3,
            figures.latency_us.p99 / 1e3,
            self.cpu_per_operation.as_secs_f64() * 1e6,
            self.report.client_cpu_share * 100.0,
        )?;
        for (kind, count) in &figures.errors {
            write!(f, "; {count} × {kind}")?;
        }
        Ok(())
    }
}
