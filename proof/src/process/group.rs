//! Several members that form one cluster.

use std::path::{Path, PathBuf};

use reqwest::Method;
use tempfile::TempDir;

use super::{Endpoint, Member, Place, eventually};
use crate::{Failure, Result, report::During};

/// Members and the directory of their data and logs. Dropping it ends the
/// processes and removes the directory.
#[derive(Debug)]
pub struct Group {
    // Dropped in this order: processes first, then their directory.
    members: Vec<Member>,
    dir: TempDir,
}

impl Group {
    /// Founders 1, 2 and so on at these places, not started.
    ///
    /// # Errors
    /// When their directory cannot be made.
    pub fn new(binary: &Path, places: Vec<Place>) -> Result<Self> {
        let dir = TempDir::with_prefix("metastore-proof-").during("make a temporary directory")?;
        let mut members = Vec::new();
        for (id, place) in (1..).zip(places) {
            members.push(Member::new(id, binary, place, dir.path())?);
        }
        let urls: Vec<String> = members.iter().map(Member::peer_url).collect();
        for member in &mut members {
            member.set("--cluster", urls.join(","));
        }
        Ok(Self { members, dir })
    }

    /// Founders 1 to `size` on 127.0.0.1, not started.
    ///
    /// # Errors
    /// As [`new`](Self::new), and when there are no free ports.
    pub fn on_loopback(binary: &Path, size: u64) -> Result<Self> {
        let places = (0..size).map(|_| Place::on_loopback()).collect::<Result<_>>()?;
        Self::new(binary, places)
    }

    /// Sets an option of every member for its next start.
    pub fn set(&mut self, option: &str, value: &str) {
        for member in &mut self.members {
            member.set(option, value);
        }
    }

    /// The directory of data and logs.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Keeps the directory when the group is dropped, for people to look at.
    pub fn keep_dir(&mut self) -> PathBuf {
        self.dir.disable_cleanup(true);
        self.dir.path().to_owned()
    }

    /// All members, ascending by id.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// All members, ascending by id.
    pub fn members_mut(&mut self) -> &mut [Member] {
        &mut self.members
    }

    /// The ids of all members.
    pub fn ids(&self) -> Vec<u64> {
        self.members.iter().map(|member| member.id).collect()
    }

    /// Has a member added to the running cluster, as a learner first. It is not
    /// part of the group until it is adopted, nor started.
    ///
    /// # Errors
    /// When it cannot be made, or the addition does not succeed in time.
    pub async fn add_member(&self, binary: &Path, id: u64) -> Result<Member> {
        let mut member = Member::new(id, binary, Place::on_loopback()?, self.dir())?;
        let live = self.members.iter().filter(|member| member.is_live()).chain([&member]);
        let list: Vec<String> = live.map(|m| format!("{}={}", m.id, m.peer_url())).collect();
        member.set("--cluster", list.join(","));
        member.set_join(true);
        let body = serde_json::json!({ "id": id, "peer_url": member.peer_url() }).to_string();
        let added = async || self.ask(Method::POST, "/-/members", &body, &[201]).await;
        eventually("the addition of a member", added).await?;
        Ok(member)
    }

    /// Has a member removed from the cluster, which may be down.
    ///
    /// # Errors
    /// When that does not succeed in time.
    pub async fn remove_member(&self, id: u64) -> Result<()> {
        let path = format!("/-/members/{id}");
        let removed = async || self.ask(Method::DELETE, &path, "", &[204, 404]).await;
        eventually("the removal of a member", removed).await
    }

    /// Makes a member the leader.
    ///
    /// # Errors
    /// When that does not succeed in time.
    pub async fn lead(&self, id: u64) -> Result<()> {
        let path = format!("/-/leader/{id}");
        let led = async || {
            self.ask(Method::POST, &path, "", &[204]).await?;
            (self.current_leader().await == Some(id)).then_some(())
        };
        eventually("a transfer of leadership", led).await
    }

    /// Asks one live member after the other until one gives such an answer.
    async fn ask(&self, method: Method, path: &str, body: &str, good: &[u16]) -> Option<()> {
        for endpoint in self.endpoints() {
            let reply = endpoint.request(method.clone(), path, body.to_owned()).await;
            if reply.is_ok_and(|reply| good.contains(&reply.status)) {
                return Some(());
            }
        }
        None
    }

    /// Takes in a member whose log is in this group's directory.
    pub fn adopt(&mut self, member: Member) {
        self.members.push(member);
    }

    /// Lets go of a member, whose process ends with it.
    pub fn dismiss(&mut self, id: u64) {
        self.members.retain(|member| member.id != id);
    }

    /// The member of this id.
    ///
    /// # Errors
    /// When there is none.
    pub fn member(&self, id: u64) -> Result<&Member> {
        let member = self.members.iter().find(|member| member.id == id);
        member.ok_or_else(|| Failure::failed(format!("there is no member {id}")))
    }

    /// The member of this id.
    ///
    /// # Errors
    /// When there is none.
    pub fn member_mut(&mut self, id: u64) -> Result<&mut Member> {
        let member = self.members.iter_mut().find(|member| member.id == id);
        member.ok_or_else(|| Failure::failed(format!("there is no member {id}")))
    }

    /// The ids of the members that run and are not paused.
    pub fn live(&self) -> Vec<u64> {
        self.members.iter().filter(|member| member.is_live()).map(|member| member.id).collect()
    }

    /// The client ports of the live members.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let live = self.members.iter().filter(|member| member.is_live());
        live.map(|member| member.endpoint().clone()).collect()
    }

    /// Starts every member that is down, then waits until each is ready.
    ///
    /// # Errors
    /// When one cannot be started or stays unready.
    pub async fn start_all(&mut self) -> Result<()> {
        self.spawn_all()?;
        for member in self.members.iter_mut().filter(|member| member.is_live()) {
            member.wait_ready().await?;
        }
        Ok(())
    }

    /// Starts every member that is down and returns at once.
    ///
    /// # Errors
    /// When one cannot be started.
    pub fn spawn_all(&mut self) -> Result<()> {
        self.members.iter_mut().filter(|member| member.pid().is_none()).try_for_each(Member::start)
    }

    /// Fails when a process has ended that should run.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn check_running(&mut self) -> Result<()> {
        for member in &mut self.members {
            if let Some(status) = member.ended()? {
                let (id, log) = (member.id, member.log_tail());
                return Err(Failure::failed(format!(
                    "member {id} ended by itself ({status}):\n{log}"
                )));
            }
        }
        Ok(())
    }

    /// The leader as the live members see it right now: the one of the highest
    /// term that says it leads.
    pub async fn current_leader(&self) -> Option<u64> {
        let mut newest = None;
        for endpoint in self.endpoints() {
            let Some(status) = endpoint.status().await else { continue };
            if status["role"] == "leader" {
                newest = newest.max(status["term"].as_u64().map(|term| (term, endpoint.id)));
            }
        }
        newest.map(|(_, id)| id)
    }

    /// Waits until every live member follows the same live leader; its id.
    ///
    /// # Errors
    /// When that does not happen in time.
    pub async fn leader(&self) -> Result<u64> {
        eventually("one leader whom every live member follows", async || {
            let mut agreed = None;
            for endpoint in self.endpoints() {
                let status = endpoint.status().await?;
                let view = (status["leader_id"].as_u64()?, status["term"].as_u64()?);
                let leads = status["role"] == "leader";
                if *agreed.get_or_insert(view) != view || leads != (view.0 == endpoint.id) {
                    return None;
                }
            }
            agreed.map(|(leader, _)| leader).filter(|leader| self.live().contains(leader))
        })
        .await
    }

    /// Waits until all live members hold the same state: applied index,
    /// revision and hash. Nothing may be written meanwhile.
    ///
    /// # Errors
    /// When they still differ at the deadline: their states.
    pub async fn check_same_state(&self) -> Result<()> {
        let mut seen = Vec::new();
        let same = eventually("equal states of all live members", async || {
            seen.clear();
            for endpoint in self.endpoints() {
                seen.push((endpoint.id, endpoint.state().await));
            }
            let first = seen.first().and_then(|(_, state)| state.as_ref());
            let same = first.is_some() && seen.iter().all(|(_, state)| state.as_ref() == first);
            same.then_some(())
        });
        same.await.during(format_args!("members of {:?}", self.live())).map_err(|failure| {
            match failure {
                Failure::Failed(why) => Failure::Failed(format!("{why}; they are {seen:?}")),
                other => other,
            }
        })
    }
}
