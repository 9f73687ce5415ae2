//! Disks without room, at every write site.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use tempfile::TempDir;

use super::{
    Turn,
    bench::{Bench, END_LIMIT, add_member, disk, endpoint},
};
use crate::{
    Failure, Result,
    faults::disk::{Action, Calls, FaultyDisk, Files, Rule},
    ledger::{Ledger, Told},
    process::{DEADLINE, Group, Member, POLL, Place, orderly_end},
    report::During,
};

/// Acknowledged writes in the life of the only member: several snapshots, each
/// with a flush and a shorter log.
const WRITES: u64 = 45;

/// How long a joiner whose disk is full for good is left alone with it.
const FULL_FOR: Duration = Duration::from_secs(2);

/// Of the sites 1 to `total`, this turn's share, at most `limit`.
fn share(total: u64, turn: Turn, limit: u64, offset: u64) -> Vec<u64> {
    let mine: Vec<u64> = (1..=total).filter(|site| site % turn.of.max(1) == turn.number).collect();
    let step = (mine.len() as u64).div_ceil(limit.max(1)).max(1);
    let begin = usize::try_from(offset % step).unwrap_or(0);
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    mine.into_iter().skip(begin).step_by(step).collect()
}

/// No room at this site: at every other one only once, else from there on.
fn rule(site: u64) -> Rule {
    let always = Rule::always(Action::Fail(Errno::ENOSPC), Calls::SPACE, Files::ALL);
    Rule { first: site, times: if site % 4 < 2 { 1 } else { u64::MAX }, ..always }
}

/// Counts sites and hits none.
fn count_only() -> Rule {
    Rule { first: u64::MAX, ..Rule::always(Action::Short, Calls::SPACE, Files::ALL) }
}

/// Without the library in between there would be nothing to prove.
fn check_counted(total: u64) -> Result<()> {
    eprintln!("diskfaults: {total} write sites");
    if total == 0 {
        return Err(Failure::failed("the faulty disk is not in between"));
    }
    Ok(())
}

fn check_names_space(bench: &Bench<'_>, site: u64, line: &str) {
    if !line.contains("space") {
        bench.figures.violation(format!("site {site}: not a word of space: {line}"));
    }
}

/// The only member, from its first start on.
pub(super) async fn alone(bench: &mut Bench<'_>, turn: Turn) -> Result<()> {
    let dir = TempDir::with_prefix("metastore-proof-").during("make a directory")?;
    let mut member = Member::new(1, bench.binary, Place::on_loopback()?, dir.path())?;
    member.set("--snapshot-count", "10");
    let disk = FaultyDisk::new(&mut member, dir.path())?;
    disk.set(count_only());
    if !live(&mut member, &Ledger::new(2000)).await? {
        return Err(Failure::failed(format!("it ends on a sound disk:\n{}", member.log_tail())));
    }
    member.kill();
    let total = disk.seen();
    check_counted(total)?;
    for site in share(total, turn, bench.sites, rand::RngExt::random(&mut bench.dice)) {
        member.kill();
        member.wipe()?;
        let ledger = Ledger::new(2000);
        disk.set(rule(site));
        if !live(&mut member, &ledger).await.during(format_args!("site {site} of {total}"))? {
            let line = orderly_end(&mut member, END_LIMIT, bench.figures).await?;
            check_names_space(bench, site, &line);
        }
        if disk.hits() > 0 {
            bench.figures.count("full disks", 1);
        }
        disk.clear();
        member.kill();
        member.start()?;
        member.wait_ready().await.during(format_args!("with room again, after site {site}"))?;
        ledger.check(member.endpoint(), 0, bench.figures).await?;
    }
    Ok(())
}

/// Starts a member and writes until enough is acknowledged, or it is about to
/// end; whether it lives.
async fn live(member: &mut Member, ledger: &Ledger) -> Result<bool> {
    member.start()?;
    let mut progress = (Instant::now(), 0);
    while ledger.acknowledged() < WRITES {
        if !matches!(ledger.write(member.endpoint()).await, Told::Acknowledged(_)) {
            tokio::time::sleep(POLL / 2).await;
        }
        if ledger.acknowledged() > progress.1 {
            progress = (Instant::now(), ledger.acknowledged());
        }
        if !member.is_up()? {
            return Ok(false);
        }
        if progress.0.elapsed() >= END_LIMIT {
            let tail = member.log_tail();
            return Err(Failure::failed(format!("it neither serves nor ends:\n{tail}")));
        }
    }
    Ok(true)
}

/// A fourth member, from its first start on; it receives a snapshot.
pub(super) async fn joiner(bench: &mut Bench<'_>, turn: Turn) -> Result<()> {
    let mut group = bench.group(3)?;
    group.start_all().await?;
    let ledger = Ledger::new(1000);
    let writers = ledger.start_writers(4, &group.endpoints());
    ledger.wait_more(150, DEADLINE).await?;
    writers.stop().await?;

    let total = join_once(bench, &mut group, &ledger, 4, None).await?;
    check_counted(total)?;
    let sites = share(total, turn, bench.sites, rand::RngExt::random(&mut bench.dice));
    for (id, site) in (5..).zip(sites) {
        let joined = join_once(bench, &mut group, &ledger, id, Some(site)).await;
        joined.during(format_args!("site {site} of {total}, member {id}"))?;
    }
    for endpoint in group.endpoints() {
        ledger.check(&endpoint, 0, bench.figures).await?;
    }
    group.check_same_state().await
}

/// Adds a member whose disk is full at this site, until it has room and is
/// whole, and removes it again. Returns the number of sites.
async fn join_once(
    bench: &Bench<'_>,
    group: &mut Group,
    ledger: &Ledger,
    id: u64,
    site: Option<u64>,
) -> Result<u64> {
    let mut member = add_member(bench, group, id).await?;
    let dir = group.dir().to_owned();
    let disk = FaultyDisk::new(&mut member, &dir)?;
    disk.set(site.map_or_else(count_only, rule));
    member.start()?;
    let mut since = None;
    while member.is_up()? && !member.endpoint().is_ready().await {
        if disk.hits() > 0 && since.get_or_insert_with(Instant::now).elapsed() > FULL_FOR {
            break;
        }
        // The majority goes on all the while.
        let leader = endpoint(group, group.leader().await?)?;
        ledger.write(&leader).await;
        tokio::time::sleep(POLL).await;
    }
    let sites = disk.seen();
    if disk.hits() > 0 {
        bench.figures.count("full disks", 1);
    }
    disk.clear();
    if !member.is_up()? {
        let line = orderly_end(&mut member, END_LIMIT, bench.figures).await?;
        check_names_space(bench, site.unwrap_or(0), &line);
        member.start()?;
    }
    member.wait_ready().await.during("a joiner that has room again")?;
    group.adopt(member);
    group.check_same_state().await?;
    group.remove_member(id).await?;
    let code = group.member_mut(id)?.wait_end(END_LIMIT).await?;
    if code != Some(0) {
        bench.figures.violation(format!("a removed member ended with {code:?}"));
    }
    group.dismiss(id);
    Ok(sites)
}

/// The leader of three under load, for good.
pub(super) async fn leader(bench: &mut Bench<'_>) -> Result<()> {
    let mut group = bench.group(3)?;
    let disks = bench.faulty(&mut group)?;
    group.start_all().await?;
    let ledger = Ledger::new(1000);
    let writers = ledger.start_writers(4, &group.endpoints());
    ledger.wait_more(50, DEADLINE).await?;
    let leader = group.leader().await?;
    let disk = disk(&disks, leader)?;
    let site = rand::RngExt::random_range(&mut bench.dice, 1..100);
    let rule =
        Rule { first: site, ..Rule::always(Action::Fail(Errno::ENOSPC), Calls::SPACE, Files::ALL) };
    disk.set(rule);
    let line = orderly_end(group.member_mut(leader)?, END_LIMIT, bench.figures).await?;
    check_names_space(bench, site, &line);
    bench.figures.count("full disks", 1);
    ledger.wait_more(50, DEADLINE).await.during("the majority")?;
    bench.figures.count("majorities that went on", 1);
    disk.clear();
    group.start_all().await?;
    writers.stop().await?;
    ledger.check(&endpoint(&group, leader)?, 0, bench.figures).await?;
    group.check_same_state().await
}
