//! Runs the built binary as real processes, alone or as a cluster.
//!
//! Nothing here sleeps for a fixed time to let something happen: conditions are
//! polled, and the deadline only turns a hang into a failure. A failing test
//! prints the tail of every node's log.

// Each test binary uses its own part of this module.
#![allow(dead_code, unused_imports)]

mod cluster;
mod command;
mod endpoint;
mod node;
mod ports;

use std::time::{Duration, Instant};

pub use cluster::Cluster;
pub use command::{metastore, refusal, report};
pub use endpoint::{Endpoint, Reply};
pub use node::Node;
pub use ports::free_port;

/// How long a condition may take before the test fails. Generous, because
/// machines are slow and several tests share one.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How long a graceful stop may take, as the contract promises.
pub const STOP_LIMIT: Duration = Duration::from_secs(5);

/// Time between two looks at a condition.
const POLL: Duration = Duration::from_millis(20);

/// Polls until the probe yields something.
///
/// # Panics
/// When it has not within [`DEADLINE`].
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "still not after {DEADLINE:?}: {what}");
        tokio::time::sleep(POLL).await;
    }
}
