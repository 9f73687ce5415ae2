//! What a member has promised its peers, and must remember.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    Failure, Figures, Result,
    process::{DEADLINE, Endpoint, Member, POLL, within},
    report::During,
};

/// How long the load may take to show what a member has promised.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the watermark file of a member says: a term that was durable, and the
/// vote in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The term.
    pub term: u64,
    /// The member voted for, 0 for none.
    pub vote: u64,
}

impl Mark {
    /// Reads the file in a member's own directory; `None` when it is not there.
    ///
    /// # Errors
    /// When it cannot be read or is too short.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("watermark");
        if !path.exists() {
            return Ok(None);
        }
        let bytes = fs::read(&path).during(format_args!("read {}", path.display()))?;
        // A version, the term, the vote, all of eight bytes.
        let number = |at: usize| {
            let bytes = bytes.get(at..at + 8)?;
            bytes.try_into().ok().map(u64::from_be_bytes)
        };
        Ok(number(8).zip(number(16)).map(|(term, vote)| Self { term, vote }))
    }
}

/// The least a member must still know after whatever happened to it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Floor {
    term: u64,
    /// An index up to which it holds committed entries.
    index: u64,
    mark: Option<Mark>,
}

/// What a member says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    term: u64,
    last_index: u64,
}

impl Standing {
    /// Starts a member and waits for what it says of itself. When all others
    /// are down or paused, that is what it remembers. `None` when it ends
    /// instead.
    ///
    /// # Errors
    /// When it cannot be started or says nothing.
    pub async fn of_started(member: &mut Member) -> Result<Option<Self>> {
        member.start()?;
        let start = Instant::now();
        loop {
            if let Some(standing) = member.endpoint().status().await.and_then(|s| Self::read(&s)) {
                return Ok(Some(standing));
            }
            if !member.is_up()? {
                return Ok(None);
            }
            if start.elapsed() >= DEADLINE {
                let (id, log) = (member.id, member.log_tail());
                return Err(Failure::failed(format!("member {id} says nothing:\n{log}")));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Before a member has read its data it knows nothing.
    fn read(status: &Value) -> Option<Self> {
        let last_index = status["last_index"].as_u64().filter(|last| *last > 0)?;
        Some(Self { term: status["term"].as_u64()?, last_index })
    }
}

/// What a leader says of itself and of one member.
struct Sight {
    leader: u64,
    term: u64,
    commit: u64,
    matched: u64,
}

async fn sight(endpoints: &[Endpoint], id: u64) -> Option<Sight> {
    let mut newest: Option<Sight> = None;
    for endpoint in endpoints {
        let Some(status) = endpoint.status().await else { continue };
        if status["role"] != "leader" {
            continue;
        }
        let peer = status["peers"].as_array()?.iter().find(|peer| peer["id"] == id)?;
        let seen = Sight {
            leader: endpoint.id,
            term: status["term"].as_u64()?,
            commit: status["commit_index"].as_u64()?,
            matched: peer["matched"].as_u64()?,
        };
        if newest.as_ref().is_none_or(|newest| newest.term < seen.term) {
            newest = Some(seen);
        }
    }
    newest
}

impl Floor {
    /// Finds out, under load, what member `id` with this directory has
    /// promised: it confirms an entry to a leader only after that leader's
    /// term, its vote, and the entry are durable. So what its watermark says
    /// before it confirms one more entry is durable after that.
    ///
    /// Without a steady leader in time nothing is known, and `None` is given.
    ///
    /// # Errors
    /// When the watermark cannot be read.
    pub async fn find(id: u64, dir: &Path, endpoints: &[Endpoint]) -> Result<Option<Self>> {
        let mark = Mark::read(dir)?;
        let Some(before) = sight(endpoints, id).await else { return Ok(None) };
        let after = within(PATIENCE, "another confirmed entry", async || {
            let after = sight(endpoints, id).await?;
            (after.matched > before.matched || after.term != before.term).then_some(after)
        });
        let Ok(after) = after.await else { return Ok(None) };
        if (after.leader, after.term) != (before.leader, before.term) {
            return Ok(None);
        }
        // A newer mark than the leader knows of may be about to become durable.
        let mark = mark.filter(|mark| mark.term <= after.term);
        // Only committed entries are never replaced by others.
        Ok(Some(Self { term: after.term, index: after.matched.min(after.commit), mark }))
    }

    /// Compares the watermark with the floor.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn check_mark(&self, id: u64, dir: &Path, figures: &Figures) -> Result<()> {
        let Some(promised) = self.mark else { return Ok(()) };
        let found = Mark::read(dir)?.unwrap_or(Mark { term: 0, vote: 0 });
        let regressed = found.term < promised.term
            || (found.term == promised.term && promised.vote != 0 && found.vote != promised.vote);
        if regressed {
            figures.violation(format!(
                "member {id}: the watermark fell from {promised:?} to {found:?}"
            ));
        }
        figures.count("votes compared", 1);
        Ok(())
    }

    /// Compares what a member, which runs and hears of nobody, says of itself
    /// with the floor.
    pub fn check_standing(&self, id: u64, standing: Standing, figures: &Figures) {
        let Standing { term, last_index } = standing;
        if term < self.term || last_index < self.index {
            figures.violation(format!(
                "member {id} came back with term {term} and entries up to {last_index}, after it \
                 had confirmed term {} and entries up to {}",
                self.term, self.index
            ));
        }
        figures.count("terms compared", 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, term: u64, vote: u64) {
        let bytes: Vec<u8> = [1, term, vote].iter().flat_map(|n: &u64| n.to_be_bytes()).collect();
        fs::write(dir.join("watermark"), bytes).expect("a file");
    }

    #[test]
    fn a_mark_that_fell_is_a_violation() {
        let dir = tempfile::tempdir().expect("a directory");
        let floor = Floor { mark: Some(Mark { term: 5, vote: 2 }), ..Floor::default() };
        for (term, vote, fell) in
            [(5, 2, false), (6, 0, false), (5, 1, true), (5, 0, true), (4, 2, true)]
        {
            write(dir.path(), term, vote);
            let figures = Figures::new("test");
            floor.check_mark(1, dir.path(), &figures).expect("a readable mark");
            assert_eq!(figures.violations() > 0, fell, "term {term}, vote {vote}");
        }
        fs::remove_file(dir.path().join("watermark")).expect("a file");
        let figures = Figures::new("test");
        floor.check_mark(1, dir.path(), &figures).expect("nothing to read");
        assert_eq!(figures.violations(), 1, "it is gone");
    }
}
