//! What a run says in the end.

use std::{collections::BTreeMap, fmt, time::Duration};

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::{plan::Plan, tally::Tally};

/// The result of a run. Its JSON has the same names.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What the clients did.
    pub workload: &'static str,
    /// How they asked.
    pub api: &'static str,
    /// Whom they asked.
    pub endpoints: Vec<String>,
    /// Connections that they shared.
    pub connections: u64,
    /// How many clients there were.
    pub clients: u64,
    /// Their threads.
    pub threads: usize,
    /// Bytes of a key.
    pub key_size: usize,
    /// Bytes of a value.
    pub value_size: usize,
    /// Number of different keys.
    pub key_space: u64,
    /// Requests that succeeded; with watchers, events that were delivered.
    #[serde(flatten)]
    pub figures: Figures,
    /// With watchers, the writes that they saw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub puts: Option<Figures>,
    /// Transactions that read instead of writing, because the key had changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conflicts: Option<u64>,
    /// What this program took of the processors, in seconds: with what went
    /// before the measurement, such as filling.
    pub client_cpu_seconds: f64,
    /// The same as a share of one processor, while it ran.
    pub client_cpu_share: f64,
}

/// How many, how fast, and what went wrong.
#[derive(Debug, Serialize)]
pub struct Figures {
    /// What succeeded.
    pub operations: u64,
    /// The time that is measured, in seconds.
    pub seconds: f64,
    /// The one by the other.
    pub per_second: f64,
    /// In microseconds.
    pub latency_us: Latencies,
    /// What did not succeed, by what happened.
    pub errors: BTreeMap<String, u64>,
}

/// Latencies of what succeeded, in microseconds.
#[derive(Debug, Serialize)]
pub struct Latencies {
    /// The median.
    pub p50: f64,
    /// Of a hundred, the tenth from the end.
    pub p90: f64,
    /// Of a hundred, the last but one.
    pub p99: f64,
    /// Of a thousand, the last but one.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

impl Figures {
    /// What was counted in so long a time.
    pub fn new(tally: &Tally, measured: Duration) -> Self {
        let seconds = measured.as_secs_f64();
        Self {
            operations: tally.count(),
            seconds,
            per_second: tally.count() as f64 / seconds.max(f64::MIN_POSITIVE),
            latency_us: Latencies {
                p50: tally.percentile_us(50.0),
                p90: tally.percentile_us(90.0),
                p99: tally.percentile_us(99.0),
                p999: tally.percentile_us(99.9),
                max: tally.longest_us(),
            },
            errors: tally.errors().clone(),
        }
    }
}

impl Report {
    /// The result of a plan, which took that long in all; before, this process
    /// had taken so much of the processors.
    pub fn new(plan: &Plan, figures: Figures, (took, cpu_before): (Duration, Duration)) -> Self {
        let options = &plan.options;
        let cpu = process_cpu().saturating_sub(cpu_before);
        Self {
            workload: options.workload.name(),
            api: options.api.name(),
            endpoints: options.endpoints.clone(),
            connections: plan.connections_used(),
            clients: options.clients,
            threads: options.threads,
            key_size: options.key_size,
            value_size: options.value_size,
            key_space: options.key_space,
            figures,
            puts: None,
            conflicts: None,
            client_cpu_seconds: cpu.as_secs_f64(),
            client_cpu_share: cpu.as_secs_f64() / took.as_secs_f64().max(f64::MIN_POSITIVE),
        }
    }

    /// Whether anything succeeded.
    pub fn has_result(&self) -> bool {
        self.figures.operations > 0
    }
}

/// What this process took of the processors so far.
pub fn process_cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { workload, api, clients, connections, .. } = self;
        writeln!(
            f,
            "{workload} over {api}: {clients} clients on {connections} connections to {}; keys of \
             {} bytes, {} of them; values of {} bytes",
            self.endpoints.join(", "),
            self.key_size,
            self.key_space,
            self.value_size,
        )?;
        match &self.puts {
            Some(puts) => {
                write!(f, "writes:      {puts}")?;
                write!(f, "deliveries:  {}", self.figures)?;
            }
            None => write!(f, "{}", self.figures)?,
        }
        if let Some(conflicts) = self.conflicts {
            writeln!(f, "conflicts:   {conflicts} of them read, since the key had changed")?;
        }
        write!(
            f,
            "client:      {:.2} s of processor time, {:.0} % of one processor",
            self.client_cpu_seconds,
            self.client_cpu_share * 100.0
        )
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operations, seconds, per_second, latency_us, errors } = self;
        let ms = |micros: f64| micros / 1e3;
        writeln!(f, "{per_second:.0} a second ({operations} in {seconds:.2} s)")?;
        writeln!(
            f,
            "latency:     p50 {:.3} ms, p90 {:.3}, p99 {:.3}, p99.9 {:.3}, max {:.3}",
            ms(latency_us.p50),
            ms(latency_us.p90),
            ms(latency_us.p99),
            ms(latency_us.p999),
            ms(latency_us.max),
        )?;
        for (kind, count) in errors {
            writeln!(f, "errors:      {count} × {kind}")?;
        }
        Ok(())
    }
}
