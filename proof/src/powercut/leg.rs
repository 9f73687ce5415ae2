//! The life of one cluster under repeated cuts.

use std::{collections::BTreeMap, fmt, path::Path, sync::Arc, thread, time::Duration};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    Failure, Figures, Result,
    faults::{
        disk::{Action, Calls, FaultyDisk, Files, Rule},
        power::{Disk, Filesystem},
    },
    floor::{Floor, Standing},
    ledger::Ledger,
    process::{DEADLINE, Group, Member, orderly_end, within},
    report::During,
};

/// How long a member may take to notice that its disk is gone, under load.
const END_LIMIT: Duration = Duration::from_secs(20);

/// How long members without a majority are watched for it.
const NOTICE: Duration = Duration::from_millis(500);

/// Writers at once.
const WRITERS: usize = 4;

/// Acknowledged writes from before the last cut that are looked for again
/// after each cut; all of them are at the end.
const LOOK_BACK: u64 = 200;

/// Whose power is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    Single,
    OneOfThree,
    AllThree,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Single => "single node",
            Self::OneOfThree => "one of three",
            Self::AllThree => "all three",
        })
    }
}

/// On what disks, and whose power is cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    filesystem: Filesystem,
    scope: Scope,
}

/// Every combination, in the order in which few cuts meet most of them.
pub(super) const PLANS: [Plan; 6] = [
    Plan { filesystem: Filesystem::Ext4, scope: Scope::Single },
    Plan { filesystem: Filesystem::Xfs, scope: Scope::AllThree },
    Plan { filesystem: Filesystem::Ext4, scope: Scope::AllThree },
    Plan { filesystem: Filesystem::Xfs, scope: Scope::Single },
    Plan { filesystem: Filesystem::Ext4, scope: Scope::OneOfThree },
    Plan { filesystem: Filesystem::Xfs, scope: Scope::OneOfThree },
];

/// When the power is cut.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// So many milliseconds after the members were started.
    Start(u64),
    /// Under load, once so many writes are acknowledged.
    Load(u64),
}

/// One cluster and its disks.
pub(super) struct Leg<'a> {
    plan: Plan,
    figures: &'a Figures,
    dice: ChaCha8Rng,
    // Dropped in this order: processes, their disks, the directory of both.
    group: Group,
    disks: BTreeMap<u64, Disk>,
    images: tempfile::TempDir,
    /// Between the members and their disks, when these lie.
    liars: Vec<FaultyDisk>,
    ledger: Arc<Ledger>,
    /// What each member was seen to promise last.
    floors: BTreeMap<u64, Floor>,
}

impl<'a> Leg<'a> {
    /// A cluster on new disks, not started.
    pub(super) fn new(binary: &Path, plan: Plan, seed: u64, figures: &'a Figures) -> Result<Self> {
        let size = if plan.scope == Scope::Single { 1 } else { 3 };
        let mut group = Group::on_loopback(binary, size)?;
        let images = tempfile::TempDir::with_prefix("metastore-disks-");
        let images = images.during("make a directory for disks")?;
        let mut disks = BTreeMap::new();
        for member in group.members_mut() {
            let place = images.path().join(member.id.to_string());
            let disk = Disk::new(plan.filesystem, &place)?;
            member.set_data_dir(&disk.path().join("data"));
            // Many snapshots, and a log that is shortened all the time.
            member.set("--snapshot-count", "50");
            disks.insert(member.id, disk);
        }
        let dice = ChaCha8Rng::seed_from_u64(seed);
        let ledger = Ledger::new(300);
        Ok(Self {
            plan,
            figures,
            dice,
            group,
            disks,
            images,
            liars: Vec::new(),
            ledger,
            floors: BTreeMap::new(),
        })
    }

    /// From now on the disks lie about every sync.
    pub(super) fn lie(&mut self) -> Result<()> {
        let dir = self.group.dir().to_owned();
        for member in self.group.members_mut() {
            let liar = FaultyDisk::new(member, &dir)?;
            liar.set(Rule::always(Action::Lie, Calls::SYNC, Files::ALL));
            self.liars.push(liar);
        }
        Ok(())
    }

    /// Keeps logs and images for people to look at.
    pub(super) fn keep(&mut self) {
        self.images.disable_cleanup(true);
        eprintln!("powercut: logs are kept in {}", self.group.keep_dir().display());
        eprintln!("powercut: images are kept in {}", self.images.path().display());
    }

    /// Cuts so often, then looks for everything that was acknowledged.
    pub(super) async fn run(&mut self, cuts: u64) -> Result<()> {
        let Plan { filesystem, scope } = self.plan;
        for cut in 0..cuts {
            // Now and then in the middle of a start, the very first included.
            let at_start = self.dice.random_ratio(1, 4) && scope != Scope::OneOfThree;
            let moment = if at_start {
                Moment::Start(self.dice.random_range(0..500))
            } else {
                Moment::Load(self.dice.random_range(20..400))
            };
            let what = format!("{filesystem}, {scope}, cut {} of {cuts}, {moment:?}", cut + 1);
            eprintln!("powercut: {what}");
            self.cut_once(moment).await.during(&what)?;
            self.figures.count("cuts", 1);
            self.figures.count(&format!("on {filesystem}"), 1);
            self.figures.count(&scope.to_string(), 1);
        }
        self.group.start_all().await?;
        for endpoint in self.group.endpoints() {
            self.ledger.check(&endpoint, 0, self.figures).await?;
        }
        self.group.check_same_state().await
    }

    async fn cut_once(&mut self, moment: Moment) -> Result<()> {
        let before = self.ledger.next().saturating_sub(LOOK_BACK);
        let victims = match moment {
            Moment::Start(milliseconds) => self.cut_at_start(milliseconds).await?,
            Moment::Load(writes) => self.cut_under_load(writes).await?,
        };
        for id in &victims {
            let disk = self.disk(*id)?;
            disk.unmount().await?;
            disk.mount()?;
        }
        self.start_again(&victims).await?;
        self.group.check_running()?;
        let at = self.dice.random_range(0..self.group.members().len());
        let asked = self.group.members()[at].endpoint().clone();
        self.ledger.check(&asked, before, self.figures).await?;
        self.group.check_same_state().await?;
        self.figures.count("hashes compared", self.group.members().len() as u64);
        Ok(())
    }

    fn disk(&mut self, id: u64) -> Result<&mut Disk> {
        self.disks.get_mut(&id).ok_or_else(|| Failure::failed(format!("member {id} has no disk")))
    }

    /// Cuts the power of these members' disks, as close together as can be.
    fn cut(&self, victims: &[u64]) -> Result<()> {
        thread::scope(|scope| {
            let disks = victims.iter().filter_map(|id| self.disks.get(id));
            let cuts: Vec<_> = disks.map(|disk| scope.spawn(|| disk.cut())).collect();
            let panicked = |_| Failure::failed("a cut panicked");
            cuts.into_iter().try_for_each(|cut| cut.join().map_err(panicked)?)
        })
    }

    /// Starts everybody afresh and cuts the power meanwhile.
    async fn cut_at_start(&mut self, milliseconds: u64) -> Result<Vec<u64>> {
        self.group.members_mut().iter_mut().for_each(|member| member.kill());
        self.group.spawn_all()?;
        // A moment of chance, which nothing announces.
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        let victims = self.group.ids();
        self.cut(&victims)?;
        // Whether they have noticed yet does not matter.
        self.group.members_mut().iter_mut().for_each(|member| member.kill());
        Ok(victims)
    }

    /// Cuts the power under load; the members concerned have to end.
    async fn cut_under_load(&mut self, writes: u64) -> Result<Vec<u64>> {
        self.group.start_all().await?;
        let leader = self.group.leader().await?;
        let writers = self.ledger.start_writers(WRITERS, &self.group.endpoints());
        self.ledger.wait_more(writes, DEADLINE).await?;
        let victims = match self.plan.scope {
            Scope::Single | Scope::AllThree => self.group.ids(),
            Scope::OneOfThree if self.dice.random() => vec![leader],
            Scope::OneOfThree => {
                let others: Vec<u64> =
                    self.group.ids().into_iter().filter(|id| *id != leader).collect();
                vec![others[self.dice.random_range(0..others.len())]]
            }
        };
        let endpoints = self.group.endpoints();
        for id in &victims {
            let dir = self.group.member(*id)?.data();
            if let Some(floor) = Floor::find(*id, &dir, &endpoints).await? {
                self.floors.insert(*id, floor);
            }
        }
        self.cut(&victims)?;
        if self.plan.scope == Scope::OneOfThree {
            self.ledger.wait_more(20, DEADLINE).await.during("the majority after a cut")?;
            self.figures.count("majorities that went on", 1);
        }
        for id in &victims {
            self.wait_end(*id).await?;
        }
        writers.stop().await?;
        Ok(victims)
    }

    /// Waits until a member has noticed that its disk is gone, and looks at how
    /// it ends. Of three without a majority only those notice that were writing.
    async fn wait_end(&mut self, id: u64) -> Result<()> {
        let member = self.group.member_mut(id)?;
        if self.plan.scope == Scope::AllThree && !ends_within(member, NOTICE).await? {
            member.kill();
            return Ok(());
        }
        let line = orderly_end(member, END_LIMIT, self.figures).await;
        line.during("a member whose disk is gone").map(drop)
    }

    /// Starts the members whose power was cut, each alone at first: what it
    /// says then is what it remembers.
    async fn start_again(&mut self, victims: &[u64]) -> Result<()> {
        let mut paused = self.group.live();
        for id in &paused {
            self.group.member_mut(*id)?.pause()?;
        }
        for id in victims {
            let floor = self.floors.get(id).copied();
            let member = self.group.member_mut(*id)?;
            if let Some(floor) = floor {
                floor.check_mark(*id, &member.data(), self.figures)?;
                let Some(standing) = Standing::of_started(member).await? else {
                    let tail = member.log_tail();
                    return Err(Failure::failed(format!(
                        "member {id} does not open again:\n{tail}"
                    )));
                };
                floor.check_standing(*id, standing, self.figures);
            } else {
                member.start()?;
            }
            if victims.len() > 1 {
                member.pause()?;
                paused.push(*id);
            }
        }
        for id in paused {
            self.group.member_mut(id)?.resume()?;
        }
        for id in victims {
            self.group.member_mut(*id)?.wait_ready().await?;
        }
        Ok(())
    }
}

/// Whether a member ends within this time; it is not reaped.
async fn ends_within(member: &Member, limit: Duration) -> Result<bool> {
    let gone =
        within(limit, "an end", async || member.endpoint().status().await.is_none().then_some(()));
    Ok(gone.await.is_ok())
}
