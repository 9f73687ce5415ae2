//! What every round needs.

use std::{path::Path, time::Duration};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::{
    Failure, Figures, Result,
    faults::disk::FaultyDisk,
    process::{Endpoint, Group, Member},
};

/// How long a member may take to notice a fault, under load.
pub(super) const END_LIMIT: Duration = Duration::from_secs(20);

/// The program, the figures and the dice of a round.
pub(super) struct Bench<'a> {
    pub binary: &'a Path,
    pub figures: &'a Figures,
    pub dice: ChaCha8Rng,
    /// Write sites that a round tries at most.
    pub sites: u64,
}

impl Bench<'_> {
    /// A group that is not started, with many snapshots.
    pub(super) fn group(&self, size: u64) -> Result<Group> {
        let mut group = Group::on_loopback(self.binary, size)?;
        group.set("--snapshot-count", "50");
        Ok(group)
    }

    /// Faulty disks for all members, by position.
    pub(super) fn faulty(&self, group: &mut Group) -> Result<Vec<FaultyDisk>> {
        let dir = group.dir().to_owned();
        group.members_mut().iter_mut().map(|member| FaultyDisk::new(member, &dir)).collect()
    }

    /// The leader or, just as likely, one of the others.
    pub(super) async fn any_role(&mut self, group: &Group) -> Result<u64> {
        let leader = group.leader().await?;
        let others: Vec<u64> = group.ids().into_iter().filter(|id| *id != leader).collect();
        if others.is_empty() || self.dice.random() {
            return Ok(leader);
        }
        Ok(others[self.dice.random_range(0..others.len())])
    }
}

/// A member that is added to a running group and starts with nothing. It is
/// not part of the group until it is adopted.
pub(super) async fn add_member(bench: &Bench<'_>, group: &Group, id: u64) -> Result<Member> {
    let mut member = group.add_member(bench.binary, id).await?;
    member.set("--snapshot-count", "50");
    Ok(member)
}

/// Gives a damaged member up, which is down, and puts a new one in its place;
/// then the group is whole.
pub(super) async fn replace(bench: &Bench<'_>, group: &mut Group, id: u64) -> Result<()> {
    group.member_mut(id)?.wipe()?;
    group.dismiss(id);
    group.remove_member(id).await?;
    let new = group.ids().into_iter().max().unwrap_or_default().max(id) + 1;
    let mut member = add_member(bench, group, new).await?;
    member.start()?;
    member.wait_ready().await?;
    group.adopt(member);
    bench.figures.count("members replaced", 1);
    Ok(())
}

/// The client port of this member.
pub(super) fn endpoint(group: &Group, id: u64) -> Result<Endpoint> {
    Ok(group.member(id)?.endpoint().clone())
}

/// The disk of this member, one of the founders.
pub(super) fn disk(disks: &[FaultyDisk], id: u64) -> Result<&FaultyDisk> {
    let at = usize::try_from(id).ok().and_then(|id| disks.get(id.checked_sub(1)?));
    at.ok_or_else(|| Failure::failed(format!("member {id} has no faulty disk")))
}
