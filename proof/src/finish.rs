//! The end of a run: everything is whole again, and what was seen is checked.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    Failure, Figures, Result,
    history::{self, Keys, Pair, Store},
    load::{LEASED, Load, Target, all_pairs, changes, hash_at},
    process::{Group, State, within},
};

/// How long leases may last that nobody renews any more: the longest time for
/// which they are granted, twice, since a new leader gives it again, and some
/// for machines that are busy.
const LEASES_END: Duration = Duration::from_secs(40);

/// What is to be checked, and where it is counted.
pub struct Finish<'a> {
    /// The cluster; nothing breaks it any more.
    pub group: &'a mut Group,
    /// The members that the load went to.
    pub targets: &'a [Target],
    /// The figures of the job.
    pub figures: &'a Figures,
}

impl Finish<'_> {
    /// Stops the load and checks what it saw.
    ///
    /// # Errors
    /// When a member does not answer, or the members never come to the same
    /// state.
    pub async fn run(&mut self, mut load: Load) -> Result<()> {
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
        self.check_contents(&Store::replay(history.clone(), &Figures::new("")), &state).await?;
        history::check(&seen, history, self.figures);
        Ok(())
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
        for target in self.targets {
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
