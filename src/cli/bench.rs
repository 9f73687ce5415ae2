//! `metastore bench`: its flags.

use std::{
    io::{self, Write},
    time::Duration,
};

use clap::Args;
use metastore_bench::{Api, Consistency, Failure, Options, Workload};

use super::parse_duration;
use crate::error::Fatal;

/// Flags of `bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// What the clients do.
    #[arg(value_enum)]
    pub workload: Workload,

    /// Client URLs of members; connections are spread over them.
    #[arg(long, env = "METASTORE_ENDPOINTS", hide_env = true, value_name = "URLS")]
    #[arg(value_delimiter = ',', default_value = "http://127.0.0.1:12380")]
    pub endpoints: Vec<String>,

    /// How the clients ask: in etcd's API, which measures etcd as well, or in
    /// metastore's own.
    #[arg(long, value_enum, default_value_t = Api::Grpc)]
    pub api: Api,

    /// Connections that the clients share; over HTTP each has its own.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub connections: u64,

    /// Clients, each with one request at a time.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub clients: u64,

    /// Threads of the clients [default: half as many as there are processors].
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub threads: usize,

    /// How long it is measured.
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub duration: Duration,

    /// How long the clients are at work before that.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = parse_duration)]
    pub warm_up: Duration,

    /// So many requests instead, however long they take.
    #[arg(long, value_name = "N", conflicts_with_all = ["duration", "warm_up"])]
    pub total: Option<u64>,

    /// Requests a second of all clients; a latency then counts from when its
    /// request was due [default: each client asks as soon as it can].
    #[arg(long, value_name = "N")]
    pub rate: Option<u64>,

    /// Bytes of a key.
    #[arg(long, value_name = "BYTES", default_value_t = 18)]
    pub key_size: usize,

    /// Bytes of a value; they do not compress.
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    pub value_size: usize,

    /// Number of different keys. Those that are read are written first, unless
    /// they are there.
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub key_space: u64,

    /// Whether reads show everything acknowledged before them, or what the
    /// member that is asked knows.
    #[arg(long, value_enum, default_value_t = Consistency::Linearizable)]
    pub consistency: Consistency,

    /// Keys of each list, a power of ten.
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub list_keys: u64,

    /// How many percent of the requests of mixed are reads.
    #[arg(long, value_name = "PERCENT", default_value_t = 90)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=100))]
    pub read_percent: u32,

    /// Watchers of the prefix of all keys.
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub watchers: u64,

    /// Write the result as JSON.
    #[arg(long)]
    pub json: bool,
}

impl BenchArgs {
    /// Does the run and prints its report.
    ///
    /// # Errors
    /// Why there is none.
    pub fn run(self) -> Result<(), Fatal> {
        let is_json = self.json;
        let report = metastore_bench::run(self.into_options());
        let report = report.map_err(|Failure { what, remedy }| Fatal::new(what, remedy))?;
        let text = if is_json {
            serde_json::to_string(&report).map_err(|cause| {
                Fatal::new(format!("cannot write the report: {cause}"), "leave out --json")
            })?
        } else {
            report.to_string()
        };
        // Whoever closed standard output does not want to know.
        let _unheard = writeln!(io::stdout(), "{text}");
        Ok(())
    }

    fn into_options(self) -> Options {
        Options {
            workload: self.workload,
            endpoints: self.endpoints,
            api: self.api,
            connections: self.connections,
            clients: self.clients,
            threads: self.threads,
            total: self.total,
            duration: self.duration,
            warm_up: self.warm_up,
            rate: self.rate,
            key_size: self.key_size,
            value_size: self.value_size,
            key_space: self.key_space,
            consistency: self.consistency,
            list_keys: self.list_keys,
            read_percent: self.read_percent,
            watchers: self.watchers,
        }
    }
}
