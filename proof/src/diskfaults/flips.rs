//! Bits that turned over on a disk.

use rand::RngExt;

use super::bench::{Bench, END_LIMIT, add_member, endpoint, replace};
use crate::{
    Failure, Result,
    faults::damage::{self, Victim},
    floor::{Floor, Standing},
    ledger::Ledger,
    process::{DEADLINE, Group, POLL, eventually, orderly_end},
    report::During,
};

/// A bit of a file turns over while its member, of one or three, is down. When
/// it is started again it must say so, or serve nothing wrong.
pub(super) async fn while_down(bench: &mut Bench<'_>, kind: Victim, size: u64) -> Result<()> {
    let log = matches!(kind, Victim::RaftWal | Victim::RaftWalTail);
    let mut group = bench.group(size)?;
    if log && bench.dice.random() {
        // The state is then far behind the log, and cannot tell that it is short.
        group.set("--snapshot-count", "10000");
    }
    group.start_all().await?;
    let ledger = Ledger::new(300);
    // Earlier lives, so that there are tables of both databases. Without them
    // the raft log still holds its very beginning.
    let lives: &[u64] = if log && bench.dice.random() { &[] } else { &[120, 170] };
    for writes in lives {
        let writers = ledger.start_writers(4, &group.endpoints());
        ledger.wait_more(*writes, DEADLINE).await?;
        writers.stop().await?;
        group.members_mut().iter_mut().for_each(|member| member.kill());
        group.start_all().await?;
    }
    let writers = ledger.start_writers(4, &group.endpoints());
    ledger.wait_more(60, DEADLINE).await?;
    let victim = bench.any_role(&group).await?;
    let dir = group.member(victim)?.data();
    let floor = Floor::find(victim, &dir, &group.endpoints()).await?;
    // In order as often as not: then the state is flushed. But that also deletes
    // the snapshots.
    if kind != Victim::Snapshot && bench.dice.random() {
        group.member_mut(victim)?.stop(END_LIMIT).await?;
    } else {
        group.member_mut(victim)?.kill();
    }
    if size > 1 {
        ledger.wait_more(20, DEADLINE).await.during("the majority")?;
        bench.figures.count("majorities that went on", 1);
    }
    writers.stop().await?;
    let flip = damage::flip(&dir, kind, &mut bench.dice)?;
    let flip = flip.ok_or_else(|| Failure::failed(format!("member {victim} has no {kind}")))?;
    eprintln!("diskfaults: member {victim}: {flip}");
    bench.figures.count("bit flips", 1);
    let before = bench.figures.violations();
    let outcome = start_damaged(bench, &mut group, &ledger, victim, floor).await;
    outcome.during(format_args!("after a flip of {flip}"))?;
    if bench.figures.violations() > before {
        eprintln!("diskfaults: the violations above are after a flip of {flip}");
    }
    Ok(())
}

/// Starts a damaged member, alone at first; in the end the group is whole.
async fn start_damaged(
    bench: &mut Bench<'_>,
    group: &mut Group,
    ledger: &std::sync::Arc<Ledger>,
    victim: u64,
    floor: Option<Floor>,
) -> Result<()> {
    let others = group.live();
    for id in &others {
        group.member_mut(*id)?.pause()?;
    }
    let standing = Standing::of_started(group.member_mut(victim)?).await;
    for id in &others {
        group.member_mut(*id)?.resume()?;
    }
    if let (Some(standing), Some(floor)) = (standing?, floor) {
        floor.check_standing(victim, standing, bench.figures);
    }
    if suspect_serves(bench, group, ledger, victim).await? {
        bench.figures.count("harmless flips", 1);
        ledger.check(&endpoint(group, victim)?, 0, bench.figures).await?;
        return group.check_same_state().await;
    }
    let data = group.member(victim)?.data();
    let line = orderly_end(group.member_mut(victim)?, END_LIMIT, bench.figures).await?;
    check_named(bench, &line, &data);
    bench.figures.count("damage detected", 1);
    if group.members().len() == 1 {
        return Ok(());
    }
    replace(bench, group, victim).await?;
    for endpoint in group.endpoints() {
        ledger.check(&endpoint, 0, bench.figures).await?;
    }
    group.check_same_state().await
}

/// The line must say which database or file, and what to do.
fn check_named(bench: &Bench<'_>, line: &str, data: &std::path::Path) {
    let names = [data.display().to_string(), "raft log".to_owned(), "raft database".to_owned()];
    let named = names.iter().any(|name| line.contains(name.as_str()));
    if !named || !line.contains("damaged: remove this member") {
        bench.figures.violation(format!("damage is not named as such: {line}"));
    }
}

/// Asks a member that may be damaged for everything, in every way; whether it
/// is still there at the end.
async fn suspect_serves(
    bench: &mut Bench<'_>,
    group: &mut Group,
    ledger: &Ledger,
    victim: u64,
) -> Result<bool> {
    for number in 0..ledger.next() {
        if !group.member_mut(victim)?.is_up()? {
            return Ok(false);
        }
        let client = endpoint(group, victim)?;
        ledger.probe(&client, number, true, bench.figures).await;
        ledger.probe(&client, number, false, bench.figures).await;
    }
    // The hash reads all there is.
    eventually("a hash or an end", async || {
        let member = group.member_mut(victim).ok()?;
        if !member.is_up().unwrap_or(false) {
            return Some(false);
        }
        member.endpoint().state().await.map(|_| true)
    })
    .await
    .map(drop)?;
    // After an answer that was an error it may need a moment to end.
    tokio::time::sleep(POLL).await;
    group.member_mut(victim)?.is_up()
}

/// A bit of a table turns over that the leader is about to send to a joiner. It
/// must become whole, whatever becomes of the leader.
pub(super) async fn sent(bench: &mut Bench<'_>) -> Result<()> {
    let mut group = bench.group(3)?;
    group.start_all().await?;
    let ledger = Ledger::new(300);
    let writers = ledger.start_writers(4, &group.endpoints());
    ledger.wait_more(300, DEADLINE).await?;
    writers.stop().await?;
    let leader = group.leader().await?;
    let dir = group.member(leader)?.data();
    let flip = damage::flip(&dir, Victim::StateSst, &mut bench.dice)?;
    let flip = flip.ok_or_else(|| Failure::failed("the leader has no table"))?;
    eprintln!("diskfaults: member {leader}: {flip}");
    bench.figures.count("bit flips", 1);
    let outcome = join_damaged(bench, &mut group, &ledger, leader).await;
    outcome.during(format_args!("after a flip of {flip}"))
}

async fn join_damaged(
    bench: &mut Bench<'_>,
    group: &mut Group,
    ledger: &std::sync::Arc<Ledger>,
    leader: u64,
) -> Result<()> {
    let mut joiner = add_member(bench, group, 4).await?;
    joiner.start()?;
    joiner.wait_ready().await.during("a joiner of a damaged leader")?;
    group.adopt(joiner);
    for number in 0..ledger.next() {
        for endpoint in group.endpoints() {
            ledger.probe(&endpoint, number, true, bench.figures).await;
        }
    }
    // The hash makes every member read all there is.
    for endpoint in group.endpoints() {
        let _or_it_ends = endpoint.state().await;
    }
    tokio::time::sleep(POLL).await;
    if group.member_mut(leader)?.is_up()? {
        bench.figures.count("harmless flips", 1);
    } else {
        orderly_end(group.member_mut(leader)?, END_LIMIT, bench.figures).await?;
        bench.figures.count("damage detected", 1);
        replace(bench, group, leader).await?;
    }
    group.check_running()?;
    for endpoint in group.endpoints() {
        ledger.check(&endpoint, 0, bench.figures).await?;
    }
    group.check_same_state().await
}
