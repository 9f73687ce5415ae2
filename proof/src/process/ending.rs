//! How a process ends that can no longer keep its promises.

use std::time::Duration;

use super::Member;
use crate::{Figures, Result};

/// Waits until a member has ended by itself, and returns the line that it owes
/// to people: what happened, to what, and what to do. A process that ends in
/// any other way than with exit code 1 and this one line has broken a promise.
///
/// # Errors
/// When it still runs after `limit`.
pub async fn orderly_end(
    member: &mut Member,
    limit: Duration,
    figures: &Figures,
) -> Result<String> {
    let code = member.wait_end(limit).await?;
    let log = member.log();
    let answers = log.lines().filter(|line| line.starts_with("metastore: ")).count();
    let last = log.lines().last().unwrap_or_default();
    let whole = last.starts_with("metastore: ") && last.contains("; ");
    if code != Some(1) || answers != 1 || !whole || log.contains("panicked") {
        let (id, tail) = (member.id, member.log_tail());
        figures.violation(format!("member {id} ended with {code:?}, not in order:\n{tail}"));
    }
    figures.count("orderly ends", 1);
    Ok(last.to_owned())
}
