//! Disks that are slow, or take less than they are given.

use std::time::{Duration, Instant};

use rand::RngExt;

use super::{
    Turn,
    bench::{Bench, disk},
};
use crate::{
    Result,
    faults::disk::{Action, Calls, Files, Rule},
    ledger::Ledger,
    process::{DEADLINE, within},
    report::During,
};

/// How soon the majority must write again, and another member lead: ten
/// election timeouts, as members are started with.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(5);

/// Every sync of the leader takes 1 to 30 s, until it no longer leads.
pub(super) async fn leader(bench: &mut Bench<'_>, turn: Turn) -> Result<()> {
    let mut group = bench.group(3)?;
    let disks = bench.faulty(&mut group)?;
    group.start_all().await?;
    let ledger = Ledger::new(500);
    let writers = ledger.start_writers(4, &group.endpoints());
    ledger.wait_more(30, DEADLINE).await?;
    let leader = group.leader().await?;
    let disk = disk(&disks, leader)?;
    // The shortest and the longest, and then whatever comes.
    let seconds = match turn.number {
        0 => 30,
        1 => 1,
        _ => bench.dice.random_range(1..=30),
    };
    let delay = Action::Delay(Duration::from_secs(seconds));
    disk.set(Rule::always(delay, Calls::SYNC, Files::RAFT));
    within(DEADLINE, "a sync that waits", async || (disk.waiting() > 0).then_some(())).await?;
    let begun = Instant::now();
    let handed_over = within(HAND_OVER_LIMIT, "another leader", async || {
        for endpoint in group.endpoints().iter().filter(|endpoint| endpoint.id != leader) {
            let status = endpoint.status().await?;
            if status["role"] == "leader" {
                return Some(());
            }
        }
        None
    });
    let what = format!("a leader whose syncs take {seconds} s");
    handed_over.await.during(&what)?;
    let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    eprintln!("diskfaults: {what}: another one led after {milliseconds} ms");
    ledger.wait_more(20, 2 * HAND_OVER_LIMIT).await.during("the majority")?;
    bench.figures.count("stalled leaders", 1);
    bench.figures.count("majorities that went on", 1);
    disk.clear();
    writers.stop().await?;
    group.start_all().await?;
    for endpoint in group.endpoints() {
        ledger.check(&endpoint, 0, bench.figures).await?;
    }
    group.check_same_state().await
}

/// Every write takes half of what it is given, on every member.
pub(super) async fn short_writes(bench: &mut Bench<'_>) -> Result<()> {
    let mut group = bench.group(3)?;
    let disks = bench.faulty(&mut group)?;
    for disk in &disks {
        disk.set(Rule::always(Action::Short, Calls::WRITE, Files::ALL));
    }
    group.start_all().await?;
    let ledger = Ledger::new(500);
    let writers = ledger.start_writers(4, &group.endpoints());
    ledger.wait_more(120, DEADLINE).await?;
    writers.stop().await?;
    group.members_mut().iter_mut().for_each(|member| member.kill());
    group.start_all().await?;
    for (endpoint, disk) in group.endpoints().iter().zip(&disks) {
        ledger.check(endpoint, 0, bench.figures).await?;
        bench.figures.count("short writes", disk.hits());
    }
    group.check_same_state().await
}
