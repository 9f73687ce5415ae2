//! What Prometheus scrapes.
//!
//! Components hold a clone of [`Metrics`] and count into it as they work. What
//! the node's status knows anyway is given as samples when somebody scrapes.

use std::{
    fs,
    ops::Deref,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Metric, Registry, Unit},
};

/// The content type of [`MetricSet::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A gauge of an index, a size or a count.
pub type Count = Gauge<u64, AtomicU64>;

/// All metrics of the process. Clones are the same metrics, and cost little:
/// every request has one.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<MetricSet>);

/// What [`Metrics`] consists of.
#[derive(Debug)]
pub struct MetricSet {
    /// Seconds the raft database took to make one batch durable.
    pub fsync_seconds: Histogram,
    /// Seconds the state machine took to apply one batch of entries.
    pub apply_seconds: Histogram,
    /// Writes and membership changes that clients of this node asked for and
    /// that were refused, timed out or lost their leader.
    pub proposals_failed: Counter,
    /// HTTP requests and gRPC calls that are being answered.
    pub http_requests_in_flight: Gauge,
    /// Watches that are open on this node.
    pub watches: Count,
    /// Bytes of events that watches were sent and have not taken yet.
    pub watch_queued_bytes: Count,
    /// Leases whose time this node counts, as the leader; 0 elsewhere.
    pub leases: Count,
    /// Leases that this node, as the leader, has proposed to end because their
    /// time was over.
    pub lease_expiries_proposed: Counter,
    /// Consistency checks in which this node, as the leader, found a majority
    /// of the voters to have the same state.
    pub checks_done: Counter,
    /// Consistency checks in which this node, as the leader, found no majority
    /// to have the same state.
    pub checks_undecided: Counter,
    /// Seconds that hashing the whole state took the last time; 0 before.
    pub state_hash_seconds: Gauge<f64, AtomicU64>,
    http_seconds: Family<HttpLabels, Histogram>,
    grpc_seconds: Family<GrpcLabels, Histogram>,
    node: NodeGauges,
    databases: DatabaseGauges,
    process: ProcessGauges,
    registry: Registry,
}

/// What a node knows of itself at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeSample {
    /// Raft's current term.
    pub term: u64,
    /// The last committed index.
    pub commit_index: u64,
    /// The last applied index.
    pub applied_index: u64,
    /// The first index still in the log.
    pub first_index: u64,
    /// The last index in the log.
    pub last_index: u64,
    /// The index of the newest snapshot.
    pub snapshot_index: u64,
    /// The store's revision.
    pub revision: u64,
    /// Requests that wait for their outcome from the log.
    pub pending_proposals: u64,
    /// Whether this node leads.
    pub is_leader: bool,
    /// Whether this node knows a leader.
    pub has_leader: bool,
    /// Whether this node is a learner.
    pub is_learner: bool,
    /// Time since the start of the process.
    pub uptime: Duration,
}

/// What a RocksDB database says of itself at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DatabaseSample {
    /// Which database, `raft` or `state`.
    pub name: &'static str,
    /// Bytes of table files on disk.
    pub sst_bytes: u64,
    /// Bytes of write-ahead log on disk.
    pub wal_bytes: u64,
    /// Bytes of write buffers in memory.
    pub memtable_bytes: u64,
    /// Bytes in the block cache.
    pub block_cache_bytes: u64,
    /// Bytes that compaction is behind, estimated.
    pub pending_compaction_bytes: u64,
    /// Full write buffers that wait to be flushed.
    pub immutable_memtables: u64,
    /// Whether RocksDB has stopped writes until it catches up.
    pub write_stopped: bool,
    /// Failed flushes and compactions since the database was opened.
    pub background_errors: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HttpLabels {
    method: &'static str,
    route: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GrpcLabels {
    method: &'static str,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DatabaseLabels {
    database: &'static str,
}

impl Metrics {
    /// Metrics that nothing has been counted in.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("metastore");
        let metrics = MetricSet {
            // 10 µs to 10 s: an NVMe drive with a write cache and a dying disk.
            fsync_seconds: Histogram::new(latency_buckets(10e-6)),
            apply_seconds: Histogram::new(latency_buckets(10e-6)),
            proposals_failed: Counter::default(),
            http_requests_in_flight: Gauge::default(),
            watches: register(&mut registry, "watches", "Watches that are open"),
            watch_queued_bytes: register_bytes(
                &mut registry,
                "watch_queued",
                "Events that watches were sent and have not taken",
            ),
            leases: register(
                &mut registry,
                "leases",
                "Leases whose time this node counts, as the leader",
            ),
            lease_expiries_proposed: Counter::default(),
            checks_done: Counter::default(),
            checks_undecided: Counter::default(),
            state_hash_seconds: Gauge::default(),
            http_seconds: Family::new_with_constructor(|| Histogram::new(latency_buckets(100e-6))),
            grpc_seconds: Family::new_with_constructor(|| Histogram::new(latency_buckets(100e-6))),
            node: NodeGauges::register(&mut registry),
            databases: DatabaseGauges::register(&mut registry),
            process: ProcessGauges::register(&mut registry),
            registry: Registry::default(),
        };
        let registry = metrics.register(registry);
        Self(Arc::new(MetricSet { registry, ..metrics }))
    }
}

impl Deref for Metrics {
    type Target = MetricSet;

    fn deref(&self) -> &MetricSet {
        &self.0
    }
}

impl MetricSet {
    fn register(&self, mut registry: Registry) -> Registry {
        let seconds = |registry: &mut Registry, name: &str, help: &str, metric: Histogram| {
            registry.register_with_unit(name, help, Unit::Seconds, metric);
        };
        seconds(
            &mut registry,
            "raft_fsync",
            "Time to make one batch of the raft log durable",
            self.fsync_seconds.clone(),
        );
        seconds(
            &mut registry,
            "apply",
            "Time to apply one batch of committed entries",
            self.apply_seconds.clone(),
        );
        registry.register(
            "proposals_failed",
            "Writes asked for here that were refused, timed out or lost their leader",
            self.proposals_failed.clone(),
        );
        registry.register(
            "http_requests_in_flight",
            "HTTP requests and gRPC calls that are being answered",
            self.http_requests_in_flight.clone(),
        );
        registry.register(
            "lease_expiries_proposed",
            "Leases whose time was over, by the clock of this node as the leader",
            self.lease_expiries_proposed.clone(),
        );
        registry.register(
            "consistency_checks_done",
            "Consistency checks in which a majority had the same state, by this node as the leader",
            self.checks_done.clone(),
        );
        registry.register(
            "consistency_checks_undecided",
            "Consistency checks in which no majority had the same state, by this node as the leader",
            self.checks_undecided.clone(),
        );
        registry.register_with_unit(
            "state_hash",
            "Time that hashing the whole state took the last time",
            Unit::Seconds,
            self.state_hash_seconds.clone(),
        );
        registry.register_with_unit(
            "http_request_duration",
            "Time from a request's head to its answer's head",
            Unit::Seconds,
            self.http_seconds.clone(),
        );
        registry.register_with_unit(
            "grpc_request_duration",
            "Time from a gRPC call's head to its answer's head",
            Unit::Seconds,
            self.grpc_seconds.clone(),
        );
        let build = vec![("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "What was built", Info::new(build));
        registry
    }

    /// Counts an answered request. `method` and `route` become labels and must
    /// come from fixed sets.
    pub fn observe_http(
        &self,
        method: &'static str,
        route: &'static str,
        status: u16,
        elapsed: Duration,
    ) {
        self.http_seconds
            .get_or_create(&HttpLabels { method, route, status })
            .observe(elapsed.as_secs_f64());
    }

    /// Counts an answered gRPC call. `method` and `code` become labels and must
    /// come from fixed sets.
    pub fn observe_grpc(&self, method: &'static str, code: &'static str, elapsed: Duration) {
        self.grpc_seconds
            .get_or_create(&GrpcLabels { method, code })
            .observe(elapsed.as_secs_f64());
    }

    /// Everything as OpenMetrics text, with these samples.
    pub fn encode(&self, node: &NodeSample, databases: &[DatabaseSample]) -> String {
        self.node.set(node);
        self.databases.set(databases);
        self.process.set(node.uptime);
        let mut encoded = String::with_capacity(16 << 10);
        text::encode(&mut encoded, &self.registry).expect("writing to a string does not fail");
        encoded
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Twenty-one bounds, each twice the one before.
fn latency_buckets(first_seconds: f64) -> impl Iterator<Item = f64> {
    exponential_buckets(first_seconds, 2.0, 21)
}

fn register<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn register_bytes<M: Metric + Clone + Default>(
    registry: &mut Registry,
    name: &str,
    help: &str,
) -> M {
    let metric = M::default();
    registry.register_with_unit(name, help, Unit::Bytes, metric.clone());
    metric
}

#[derive(Debug, Clone)]
struct NodeGauges {
    term: Count,
    commit_index: Count,
    applied_index: Count,
    first_index: Count,
    last_index: Count,
    snapshot_index: Count,
    revision: Count,
    pending_proposals: Count,
    is_leader: Count,
    has_leader: Count,
    is_learner: Count,
}

impl NodeGauges {
    fn register(registry: &mut Registry) -> Self {
        let mut gauge = |name, help| register(registry, name, help);
        Self {
            term: gauge("raft_term", "Raft's current term"),
            commit_index: gauge("raft_commit_index", "The last committed index"),
            applied_index: gauge("raft_applied_index", "The last applied index"),
            first_index: gauge("raft_first_index", "The first index still in the log"),
            last_index: gauge("raft_last_index", "The last index in the log"),
            snapshot_index: gauge("raft_snapshot_index", "The index of the newest snapshot"),
            revision: gauge("store_revision", "The store's revision"),
            pending_proposals: gauge(
                "proposals_pending",
                "Requests that wait for their outcome from the log",
            ),
            is_leader: gauge("raft_is_leader", "1 when this node leads"),
            has_leader: gauge("raft_has_leader", "1 when this node knows a leader"),
            is_learner: gauge("raft_is_learner", "1 when this node is a learner"),
        }
    }

    fn set(&self, sample: &NodeSample) {
        self.term.set(sample.term);
        self.commit_index.set(sample.commit_index);
        self.applied_index.set(sample.applied_index);
        self.first_index.set(sample.first_index);
        self.last_index.set(sample.last_index);
        self.snapshot_index.set(sample.snapshot_index);
        self.revision.set(sample.revision);
        self.pending_proposals.set(sample.pending_proposals);
        self.is_leader.set(sample.is_leader.into());
        self.has_leader.set(sample.has_leader.into());
        self.is_learner.set(sample.is_learner.into());
    }
}

type PerDatabase = Family<DatabaseLabels, Count>;

#[derive(Debug, Clone)]
struct DatabaseGauges {
    sst: PerDatabase,
    wal: PerDatabase,
    memtable: PerDatabase,
    block_cache: PerDatabase,
    pending_compaction: PerDatabase,
    immutable_memtables: PerDatabase,
    write_stopped: PerDatabase,
    background_errors: PerDatabase,
}

impl DatabaseGauges {
    fn register(registry: &mut Registry) -> Self {
        let mut bytes = |name, help| register_bytes(registry, name, help);
        let sst = bytes("rocksdb_sst", "Table files on disk");
        let wal = bytes("rocksdb_wal", "Write-ahead log on disk");
        let memtable = bytes("rocksdb_memtable", "Write buffers in memory");
        let block_cache =
            bytes("rocksdb_block_cache", "Block cache, shared by the databases of the process");
        let pending_compaction =
            bytes("rocksdb_pending_compaction", "What compaction is behind, estimated");
        let mut gauge = |name, help| register(registry, name, help);
        Self {
            sst,
            wal,
            memtable,
            block_cache,
            pending_compaction,
            immutable_memtables: gauge(
                "rocksdb_immutable_memtables",
                "Full write buffers that wait to be flushed",
            ),
            write_stopped: gauge("rocksdb_write_stopped", "1 when RocksDB has stopped writes"),
            background_errors: gauge(
                "rocksdb_background_errors",
                "Failed flushes and compactions since the database was opened",
            ),
        }
    }

    fn set(&self, samples: &[DatabaseSample]) {
        for sample in samples {
            let labels = DatabaseLabels { database: sample.name };
            let set = |family: &PerDatabase, value: u64| {
                family.get_or_create(&labels).set(value);
            };
            set(&self.sst, sample.sst_bytes);
            set(&self.wal, sample.wal_bytes);
            set(&self.memtable, sample.memtable_bytes);
            set(&self.block_cache, sample.block_cache_bytes);
            set(&self.pending_compaction, sample.pending_compaction_bytes);
            set(&self.immutable_memtables, sample.immutable_memtables);
            set(&self.write_stopped, sample.write_stopped.into());
            set(&self.background_errors, sample.background_errors);
        }
    }
}

#[derive(Debug, Clone)]
struct ProcessGauges {
    uptime: Gauge<f64, AtomicU64>,
    // None where the system does not tell.
    open_files: Option<Count>,
    resident_memory: Option<Count>,
}

impl ProcessGauges {
    fn register(registry: &mut Registry) -> Self {
        let uptime = Gauge::default();
        let help = "Time since the start of the process";
        registry.register_with_unit("process_uptime", help, Unit::Seconds, uptime.clone());
        Self {
            uptime,
            open_files: open_files()
                .map(|_| register(registry, "process_open_fds", "Open file descriptors")),
            resident_memory: resident_bytes().map(|_| {
                register_bytes(registry, "process_resident_memory", "Memory that is in RAM")
            }),
        }
    }

    fn set(&self, uptime: Duration) {
        self.uptime.set(uptime.as_secs_f64());
        if let (Some(gauge), Some(count)) = (&self.open_files, open_files()) {
            gauge.set(count);
        }
        if let (Some(gauge), Some(bytes)) = (&self.resident_memory, resident_bytes()) {
            gauge.set(bytes);
        }
    }
}

/// How many files the process has open; known on Linux.
fn open_files() -> Option<u64> {
    let count = fs::read_dir("/proc/self/fd").ok()?.count();
    u64::try_from(count).ok()
}

/// Bytes of the process in RAM; known on Linux.
fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(encoded: &str, sample: &str) -> f64 {
        let line = encoded.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {sample} in\n{encoded}")).parse().expect("a number")
    }

    #[test]
    fn what_was_counted_is_scraped() {
        let metrics = Metrics::new();
        metrics.fsync_seconds.observe(0.001);
        metrics.clone().proposals_failed.inc();
        metrics.watches.set(12);
        metrics.lease_expiries_proposed.inc_by(4);
        metrics.checks_done.inc_by(3);
        metrics.state_hash_seconds.set(2.5);
        metrics.observe_http("PUT", "/{key}", 204, Duration::from_millis(2));
        let node = NodeSample {
            term: 7,
            pending_proposals: 3,
            is_leader: true,
            uptime: Duration::from_millis(1500),
            ..NodeSample::default()
        };
        let raft = DatabaseSample { name: "raft", sst_bytes: 4096, ..DatabaseSample::default() };
        let encoded = metrics.encode(&node, &[raft]);
        for (sample, expected) in [
            ("metastore_raft_fsync_seconds_count", 1.0),
            ("metastore_apply_seconds_count", 0.0),
            ("metastore_proposals_failed_total", 1.0),
            ("metastore_proposals_pending", 3.0),
            ("metastore_raft_term", 7.0),
            ("metastore_watches", 12.0),
            ("metastore_watch_queued_bytes", 0.0),
            ("metastore_leases", 0.0),
            ("metastore_lease_expiries_proposed_total", 4.0),
            ("metastore_consistency_checks_done_total", 3.0),
            ("metastore_consistency_checks_undecided_total", 0.0),
            ("metastore_state_hash_seconds", 2.5),
            ("metastore_raft_is_leader", 1.0),
            ("metastore_raft_has_leader", 0.0),
            ("metastore_process_uptime_seconds", 1.5),
            ("metastore_rocksdb_sst_bytes{database=\"raft\"}", 4096.0),
            (
                "metastore_http_request_duration_seconds_count{method=\"PUT\",route=\"/{key}\",status=\"204\"}",
                1.0,
            ),
        ] {
            assert!((value(&encoded, sample) - expected).abs() < 1e-9, "{sample}");
        }
        assert!(encoded.ends_with("# EOF\n"));
    }

    #[test]
    fn every_sample_begins_with_the_projects_name() {
        let encoded = Metrics::new().encode(&NodeSample::default(), &[]);
        for line in encoded.lines().filter(|line| !line.starts_with('#')) {
            assert!(line.starts_with("metastore_"), "{line}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn linux_tells_about_the_process() {
        assert!(open_files().is_some_and(|count| count > 2));
        assert!(resident_bytes().is_some_and(|bytes| bytes > 100 << 10));
    }
}
