//! Disks that refuse single calls.

use nix::errno::Errno;
use rand::{RngExt, seq::SliceRandom};

use super::{
    Turn,
    bench::{Bench, END_LIMIT, disk, endpoint},
};
use crate::{
    Failure, Result,
    faults::disk::{Action, Calls, Files, Rule},
    ledger::{Ledger, Told},
    process::{DEADLINE, POLL, orderly_end, within},
    report::During,
};

const EIO: Action = Action::Fail(Errno::EIO);

/// What fails, in turns.
const CHANGES: [(Calls, Files); 7] = [
    (Calls::SYNC, Files::RAFT),
    (Calls::WRITE, Files::RAFT),
    (Calls::SYNC, Files::STATE),
    (Calls::WRITE, Files::STATE),
    (Calls::CREATE, Files::SNAP),
    (Calls::SYNC, Files::SNAP),
    (Calls::ALLOCATE, Files::STATE),
];

/// One write, sync or other change of a member of three fails: this turn's
/// share of them, or as many as may be tried.
pub(super) async fn of_a_change(bench: &mut Bench<'_>, turn: Turn) -> Result<()> {
    let mine = |at: &u64| at % turn.of.max(1) == turn.number;
    let mut mine: Vec<u64> = (0..CHANGES.len() as u64).filter(mine).collect();
    mine.shuffle(&mut bench.dice);
    mine.truncate(usize::try_from(bench.sites).unwrap_or(usize::MAX));
    for (calls, files) in mine.into_iter().filter_map(|at| CHANGES.get(usize::try_from(at).ok()?)) {
        let what = format!("{calls:?} of {files:?}");
        change_fails(bench, *calls, *files).await.during(&what)?;
    }
    Ok(())
}

async fn change_fails(bench: &mut Bench<'_>, calls: Calls, files: Files) -> Result<()> {
    let mut group = bench.group(3)?;
    let disks = bench.faulty(&mut group)?;
    group.start_all().await?;
    let ledger = Ledger::new(500);
    let writers = ledger.start_writers(4, &group.endpoints());
    ledger.wait_more(30, DEADLINE).await?;
    let victim = bench.any_role(&group).await?;
    let disk = disk(&disks, victim)?;
    // The raft database may not try again even if it would succeed. Of the
    // other calls a single one may be one that is rightly tried again: the
    // rewriting of a table.
    let times = if files == Files::RAFT { 1 } else { u64::MAX };
    disk.set(Rule { times, ..Rule::always(EIO, calls, files) });
    within(END_LIMIT, "a call that fails", async || (disk.hits() > 0).then_some(())).await?;
    bench.figures.count("failed calls", 1);
    let member = group.member_mut(victim)?;
    // Space that cannot be reserved in advance is no loss.
    if calls != Calls::ALLOCATE {
        orderly_end(member, END_LIMIT, bench.figures).await.during("after a failed call")?;
    }
    ledger.wait_more(30, DEADLINE).await.during("the majority")?;
    bench.figures.count("majorities that went on", 1);
    disk.clear();
    group.start_all().await?;
    writers.stop().await?;
    ledger.check(&endpoint(&group, victim)?, 0, bench.figures).await?;
    group.check_same_state().await
}

/// A sync of the only member fails once: a second try would succeed, but what
/// the first had to write is gone. Nothing that is written after it may be
/// acknowledged.
pub(super) async fn of_a_sync_alone(bench: &mut Bench<'_>) -> Result<()> {
    let mut group = bench.group(1)?;
    let disks = bench.faulty(&mut group)?;
    group.start_all().await?;
    let ledger = Ledger::new(500);
    let disk = disk(&disks, 1)?;
    let rule = Rule::once(EIO, Calls::SYNC, Files::RAFT);
    disk.set(Rule { first: bench.dice.random_range(1..60), ..rule });
    let client = endpoint(&group, 1)?;
    while group.member_mut(1)?.is_up()? {
        let failed_before = disk.hits() > 0;
        let told = ledger.write(&client).await;
        if failed_before && matches!(told, Told::Acknowledged(_)) {
            bench.figures.violation("a write was acknowledged after a failed sync");
        }
        if ledger.acknowledged() > 1000 {
            return Err(Failure::failed("a sync failed and nothing came of it"));
        }
        if !matches!(told, Told::Acknowledged(_)) {
            tokio::time::sleep(POLL).await;
        }
    }
    orderly_end(group.member_mut(1)?, END_LIMIT, bench.figures).await?;
    bench.figures.count("failed calls", 1);
    disk.clear();
    group.start_all().await?;
    ledger.check(&client, 0, bench.figures).await?;
    Ok(())
}

/// Reads of a member of three fail, from one of them on.
pub(super) async fn of_reads(bench: &mut Bench<'_>) -> Result<()> {
    let mut group = bench.group(3)?;
    let disks = bench.faulty(&mut group)?;
    group.start_all().await?;
    let ledger = Ledger::new(500);
    let writers = ledger.start_writers(4, &group.endpoints());
    ledger.wait_more(300, DEADLINE).await?;
    writers.stop().await?;
    let victim = bench.any_role(&group).await?;
    let disk = disk(&disks, victim)?;
    group.member_mut(victim)?.kill();
    let files = if bench.dice.random() { Files::STATE } else { Files::RAFT };
    let always = Rule::always(EIO, Calls::READ, files);
    disk.set(Rule { first: bench.dice.random_range(1..12), ..always });
    group.member_mut(victim)?.start()?;
    let client = endpoint(&group, victim)?;
    for number in 0..ledger.next() {
        if !group.member_mut(victim)?.is_up()? {
            break;
        }
        ledger.probe(&client, number, number % 2 == 0, bench.figures).await;
    }
    bench.figures.count("failed calls", disk.hits());
    if disk.hits() > 0 {
        let member = group.member_mut(victim)?;
        orderly_end(member, END_LIMIT, bench.figures).await.during("after failed reads")?;
    }
    disk.clear();
    group.member_mut(victim)?.kill();
    group.start_all().await?;
    ledger.check(&endpoint(&group, victim)?, 0, bench.figures).await?;
    group.check_same_state().await
}
