//! The end of a run: everything is whole again, and what was seen is checked.

use std::{collections::BTreeMap, time::Duration};

use super::Run;
use crate::{
    Failure, Result,
    history::{self, Keys, Pair, Store},
    load::{LEASED, Load, all_pairs, changes, hash_at},
    process::{State, within},
};

/// How long leases may last that nobody renews any more: the longest time for
/// which they are granted, twice, since a new leader gives it again, and some
/// for machines that are busy.
const LEASES_END: Duration = Duration::from_secs(40);

impl Run<'_> {
    /// Stops the load and checks what it saw.
    pub(super) async fn finish(&mut self, mut load: Load) -> Result<()> {
        self.network.set(&crate::faults::network::Broken::default())?;
        self.group.start_all().await?;
        let mut seen = load.stop_requests().await?;
        self.wait_for_leases().await?;
        let state = self.same_state().await?;
        seen.watches = load.stop_watches(state.revision).await?;
        let Some((first, others)) = self.targets.split_first() else { return Ok(()) };
        let history = changes(first, state.revision).await?;
        for other in others {
            let told = changes(other, state.revision).await?;
            if told != history {
                let at = history.iter().zip(&told).find(|(one, other)| one != other);
                self.figures.violation(format!(
                    "members {} and {} tell of {} and {} changes, which first differ in {at:?}",
                    first.id,
                    other.id,
                    history.len(),
                    told.len()
                ));
            }
        }
        self.check_contents(&Store::replay(history.clone(), &crate::Figures::new("")), &state)
            .await?;
        history::check(&seen, history, self.figures);
        self.count_snapshots();
        let longest = self.recoveries.iter().max().copied().unwrap_or_default();
        self.figures.count("ms until the slowest recovery", longest.as_millis() as u64);
        Ok(())
    }

    /// How often a member that lagged was sent the whole state.
    fn count_snapshots(&self) {
        for member in self.group.members() {
            let log = std::fs::read_to_string(member.log_path()).unwrap_or_default();
            let installed = log.lines().filter(|line| line.contains("installed the snapshot of"));
            self.figures.count("snapshots installed", installed.count() as u64);
        }
    }

    async fn wait_for_leases(&self) -> Result<()> {
        let Some(target) = self.targets.first() else { return Ok(()) };
        let leased = Keys::below(LEASED);
        let gone = within(LEASES_END, "leases that nobody renews end", async || {
            let (_, pairs) = all_pairs(target).await.ok()?;
            (!pairs.iter().any(|pair| leased.contains(&pair.key))).then_some(())
        });
        if let Err(Failure::Failed(why)) = gone.await {
            self.figures.violation(why);
        }
        Ok(())
    }

    /// The state of all members, once it is the same.
    async fn same_state(&self) -> Result<State> {
        let compared = self.group.check_same_state().await;
        if let Err(Failure::Failed(why)) = &compared {
            self.figures.violation(why.clone());
        }
        compared?;
        let state = match self.group.endpoints().first() {
            Some(endpoint) => endpoint.state().await,
            None => None,
        };
        state.ok_or_else(|| Failure::failed("a member does not tell its state"))
    }

    /// Every member has the pairs that its history ends in, and the same hash
    /// of it, now and half-way.
    async fn check_contents(&self, store: &Store, state: &State) -> Result<()> {
        let expected = store.range(&Keys { key: "\0".into(), end: "~".into() }, state.revision);
        let mut hashes: BTreeMap<(u64, u32), Vec<u64>> = BTreeMap::new();
        let revisions = [state.revision / 2, state.revision];
        for target in &self.targets {
            let (revision, pairs) = all_pairs(target).await?;
            if revision != state.revision || !pairs.iter().eq(expected.iter().copied()) {
                let missing: Vec<&&Pair> =
                    expected.iter().filter(|pair| !pairs.contains(**pair)).take(3).collect();
                self.figures.violation(format!(
                    "member {} has {} pairs at revision {revision}, not the {} at revision {} of \
                     its history; missing: {missing:?}",
                    target.id,
                    pairs.len(),
                    expected.len(),
                    state.revision
                ));
            }
            for revision in revisions {
                let hash = hash_at(target, revision).await?;
                hashes.entry((revision, hash)).or_default().push(target.id);
            }
        }
        if hashes.len() == revisions.len() {
            self.figures.count("equal hashes", (self.targets.len() * revisions.len()) as u64);
        } else {
            self.figures.violation(format!("HashKV differs: {hashes:?}"));
        }
        Ok(())
    }
}
