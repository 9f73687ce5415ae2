//! Members as processes: the built binary, alone or as a group.
//!
//! Nothing here sleeps to let something happen: conditions are polled, and a
//! deadline only turns a hang into a failure.

mod binary;
mod ending;
mod endpoint;
mod group;
mod member;
mod ports;
mod spawner;
mod usage;

use std::time::{Duration, Instant};

pub use binary::find_binary;
pub use ending::orderly_end;
pub use endpoint::{Endpoint, Reply, State};
pub use group::Group;
pub use member::{Member, Place};
pub use ports::free_port;
pub use spawner::spawn;
pub use usage::{Usage, UsageLog};

use crate::{Failure, Result};

/// How long a condition may take before it counts as never. Generous, because
/// machines are slow and jobs load them.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Time between two looks at a condition.
pub const POLL: Duration = Duration::from_millis(20);

/// Polls until the probe yields something.
///
/// # Errors
/// When it has not within [`DEADLINE`].
pub async fn eventually<T>(what: &str, probe: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    within(DEADLINE, what, probe).await
}

/// Polls until the probe yields something.
///
/// # Errors
/// When it has not within the limit.
pub async fn within<T>(
    limit: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = probe().await {
            return Ok(found);
        }
        if start.elapsed() >= limit {
            return Err(Failure::failed(format!("still not after {limit:?}: {what}")));
        }
        tokio::time::sleep(POLL).await;
    }
}
