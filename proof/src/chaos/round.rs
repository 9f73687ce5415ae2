//! One round of faults.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::time::sleep;

use super::Run;
use crate::{
    Result,
    faults::{
        delay::DelayProxy,
        network::{Broken, CLIENTS, PEER_PORT, address, proxy_port},
    },
    load::{Dice, Load},
    process::eventually,
};

/// What happens to the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    /// Nothing.
    Nothing,
    /// A member is cut off from the others.
    Isolate,
    /// The leader is cut off from the others.
    IsolateLeader,
    /// A member hears nobody and is heard, or the other way round.
    OneWay,
    /// Each member sees a majority, and none the same.
    Ring,
    /// A member is cut off from everybody, clients too.
    Vanish,
    /// 1 to 50 % of all packets between members are lost.
    Loss,
    /// The same between clients and members too.
    LossForAll,
    /// Connections between members take their time.
    Delay,
}

/// What happens to processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hit {
    Kill,
    KillLeader,
    KillAll,
    Pause,
    PauseLeader,
    /// SIGTERM, which it must obey.
    Stop,
}

/// Faults in an order in which every kind comes before any comes twice.
#[derive(Debug, Default)]
pub struct Decks {
    breaks: Vec<Break>,
    hits: Vec<Hit>,
}

/// A fault of the network and one of processes.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    of_network: Break,
    of_processes: Hit,
}

impl Decks {
    /// The next round.
    pub fn draw(&mut self, dice: &mut Dice) -> Round {
        if self.breaks.is_empty() {
            self.breaks = vec![
                Break::Nothing,
                Break::Isolate,
                Break::IsolateLeader,
                Break::OneWay,
                Break::Ring,
                Break::Vanish,
                Break::Loss,
                Break::LossForAll,
                Break::Delay,
            ];
            dice.shuffle(&mut self.breaks);
        }
        if self.hits.is_empty() {
            self.hits = vec![
                Hit::Kill,
                Hit::KillLeader,
                Hit::KillAll,
                Hit::Pause,
                Hit::PauseLeader,
                Hit::Stop,
            ];
            dice.shuffle(&mut self.hits);
        }
        Round {
            of_network: self.breaks.pop().unwrap_or(Break::Nothing),
            of_processes: self.hits.pop().unwrap_or(Hit::Kill),
        }
    }
}

/// How long a cluster may take from the end of all faults until every member
/// acknowledges writes. Most of it is for machines that are busy.
const RECOVERY_LIMIT: Duration = Duration::from_secs(30);

/// How long a member may take to stop, as the contract promises.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// The longest pause of a process.
const MAX_PAUSE_MS: u64 = 30_000;

const MIN_PAUSE_MS: u64 = 1_000;

const LONGEST_PAUSE_OF_A_MINUTE_MS: u64 = 10_000;

impl Run<'_> {
    /// Breaks, waits, heals, and waits for writes.
    pub(super) async fn round(&mut self, round: Round, load: &mut Load) -> Result<()> {
        let broken = self.broken(round.of_network).await;
        let proxies = self.start_proxies(&broken).await?;
        self.network.set(&broken)?;
        self.wait(500, 2_000).await;
        self.hit(round.of_processes).await?;
        self.network.set(&Broken::default())?;
        drop(proxies);
        self.check_running()?;
        self.group.spawn_all()?;
        self.recover(round, load).await
    }

    async fn wait(&mut self, least_ms: u64, most_ms: u64) {
        sleep(Duration::from_millis(self.dice.between(least_ms, most_ms))).await;
    }

    fn any_member(&mut self) -> u64 {
        self.dice.between(1, self.options.members)
    }

    /// The leader, or any member when none says that it leads.
    async fn leader(&mut self) -> u64 {
        // Drawn in any case, so that the draws after it do not depend on it.
        let any = self.any_member();
        self.group.current_leader().await.unwrap_or(any)
    }

    async fn broken(&mut self, what: Break) -> Broken {
        let mut broken = Broken::default();
        let members: Vec<u64> = (1..=self.options.members).collect();
        let links: Vec<(u64, u64)> = members
            .iter()
            .flat_map(|from| members.iter().map(|to| (*from, *to)))
            .filter(|(from, to)| from != to)
            .collect();
        let counter = match what {
            Break::Nothing => return broken,
            Break::Isolate | Break::IsolateLeader | Break::Vanish => {
                let alone = match what {
                    Break::IsolateLeader => self.leader().await,
                    _ => self.any_member(),
                };
                links.iter().filter(|(from, _)| *from == alone).for_each(|(_, to)| {
                    broken.part(alone, *to);
                });
                if what == Break::Vanish {
                    broken.part(alone, CLIENTS);
                }
                "partitions"
            }
            Break::OneWay => {
                let one = self.any_member();
                let hears = self.dice.percent(50);
                let cut = |(from, to): &&(u64, u64)| if hears { *from == one } else { *to == one };
                broken.cut = links.iter().filter(cut).copied().collect();
                "partitions"
            }
            Break::Ring => {
                broken.cut = ring(&members, &links);
                "partitions"
            }
            Break::Loss | Break::LossForAll => {
                let percent = self.dice.between(1, 50);
                broken.lossy = links.iter().map(|link| (*link, percent)).collect();
                if what == Break::LossForAll {
                    for member in &members {
                        broken.lossy.insert((CLIENTS, *member), percent);
                        broken.lossy.insert((*member, CLIENTS), percent);
                    }
                }
                "lossy networks"
            }
            Break::Delay => {
                broken.slow = links.into_iter().collect();
                "slow networks"
            }
        };
        self.figures.count(counter, 1);
        broken
    }

    /// A proxy for each slow link, some slower than others.
    async fn start_proxies(&mut self, broken: &Broken) -> Result<Vec<DelayProxy>> {
        let mut proxies = Vec::new();
        for (from, to) in &broken.slow {
            let delay = Duration::from_millis(self.dice.between(5, 150));
            let listen = SocketAddr::new(address(CLIENTS).into(), proxy_port(*from, *to));
            let target = SocketAddr::new(address(*to).into(), PEER_PORT);
            proxies.push(DelayProxy::start(listen, target, delay).await?);
        }
        Ok(proxies)
    }

    async fn hit(&mut self, hit: Hit) -> Result<()> {
        let victims = match hit {
            Hit::Kill | Hit::Pause | Hit::Stop => vec![self.any_member()],
            Hit::KillLeader | Hit::PauseLeader => vec![self.leader().await],
            Hit::KillAll => self.group.ids(),
        };
        if matches!(hit, Hit::Pause | Hit::PauseLeader) {
            return self.pause(&victims).await;
        }
        self.check_running()?;
        for id in &victims {
            if hit == Hit::Stop {
                self.stop(*id).await?;
            } else {
                self.group.member_mut(*id)?.kill();
                self.figures.count("kills", 1);
            }
        }
        self.wait(0, 3_000).await;
        // Sometimes it comes back while the network is still broken.
        if self.dice.percent(50) {
            self.group.spawn_all()?;
            self.wait(500, 2_000).await;
        }
        Ok(())
    }

    async fn pause(&mut self, victims: &[u64]) -> Result<()> {
        for id in victims {
            self.group.member_mut(*id)?.pause()?;
            self.figures.count("pauses", 1);
        }
        // Short ones more often than long ones, and none that lasts a short run.
        let longest = MAX_PAUSE_MS.min(self.options.minutes * LONGEST_PAUSE_OF_A_MINUTE_MS);
        let longest = self.dice.between(MIN_PAUSE_MS, longest);
        self.wait(MIN_PAUSE_MS, longest).await;
        for id in victims {
            self.group.member_mut(*id)?.resume()?;
        }
        Ok(())
    }

    async fn stop(&mut self, id: u64) -> Result<()> {
        let member = self.group.member_mut(id)?;
        let stopped = member.stop(STOP_LIMIT).await;
        self.figures.count("stops", 1);
        if !matches!(stopped, Ok(Some(0))) {
            let log = member.log_tail();
            self.figures.violation(format!("member {id} was told to stop: {stopped:?}:\n{log}"));
            member.kill();
        }
        Ok(())
    }

    /// A member that ended by itself has broken a promise; the others go on.
    fn check_running(&mut self) -> Result<()> {
        for member in self.group.members_mut() {
            if let Some(status) = member.ended()? {
                let (id, log) = (member.id, member.log_tail());
                self.figures.violation(format!("member {id} ended by itself ({status}):\n{log}"));
            }
        }
        Ok(())
    }

    /// Waits until every member acknowledges a write.
    async fn recover(&mut self, round: Round, load: &mut Load) -> Result<()> {
        let start = Instant::now();
        for target in self.targets.clone() {
            let mut failed = None;
            let written =
                eventually("a write is acknowledged", async || match load.probe(&target).await {
                    Ok(true) => Some(()),
                    Ok(false) => None,
                    Err(failure) => {
                        failed = Some(failure);
                        Some(())
                    }
                })
                .await;
            if let Some(failure) = failed {
                return Err(failure);
            }
            if written.is_err() || start.elapsed() > RECOVERY_LIMIT {
                let (id, took) = (target.id, start.elapsed());
                let log = self.group.member(id)?.log_tail();
                self.figures.violation(format!(
                    "{took:?} after {round:?} had ended, member {id} acknowledges no write:\n{log}"
                ));
                break;
            }
        }
        self.check_running()?;
        self.group.spawn_all()?;
        self.recoveries.push(start.elapsed());
        Ok(())
    }
}

/// The links to cut so that each member reaches only its neighbours in a ring,
/// itself included a majority. A ring of three lacks no link; one is cut.
fn ring(members: &[u64], links: &[(u64, u64)]) -> BTreeSet<(u64, u64)> {
    let count = members.len() as u64;
    let reach = (count / 2).div_ceil(2);
    let far = |(from, to): &&(u64, u64)| {
        let distance = from.abs_diff(*to);
        distance.min(count - distance) > reach
    };
    let cut: BTreeSet<(u64, u64)> = links.iter().filter(far).copied().collect();
    if cut.is_empty() { [(1, 2), (2, 1)].into() } else { cut }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_comes_before_any_comes_twice() {
        let mut dice = Dice::new(1, 1);
        let mut decks = Decks::default();
        let rounds: Vec<Round> = (0..9).map(|_| decks.draw(&mut dice)).collect();
        let breaks: BTreeSet<String> =
            rounds.iter().map(|round| format!("{:?}", round.of_network)).collect();
        assert_eq!(breaks.len(), 9);
        let hits: BTreeSet<String> =
            rounds.iter().take(6).map(|round| format!("{:?}", round.of_processes)).collect();
        assert_eq!(hits.len(), 6);
    }

    #[test]
    fn in_a_ring_each_member_sees_a_majority_but_not_all() {
        for count in [3_u64, 5, 7, 9] {
            let members: Vec<u64> = (1..=count).collect();
            let links: Vec<(u64, u64)> = members
                .iter()
                .flat_map(|from| members.iter().map(|to| (*from, *to)))
                .filter(|(from, to)| from != to)
                .collect();
            let cut = ring(&members, &links);
            assert!(!cut.is_empty());
            for member in members {
                let lost = cut.iter().filter(|(from, _)| *from == member).count() as u64;
                assert!(count - lost > count / 2, "{member} of {count}: {cut:?}");
                assert!(cut.iter().all(|(from, to)| cut.contains(&(*to, *from))));
            }
        }
    }
}
