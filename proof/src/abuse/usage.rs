//! What the members take of the machine, and what they may.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{task::JoinHandle, time::interval};

use crate::{
    Figures, Result,
    process::{Group, Usage, within},
};

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// Memory of one member at any time, in MiB: the sum of the bounds in the
/// README, as far as the abuses here can reach them.
const MOST_MEMORY_MIB: u64 = 3 << 10;

/// Memory of one member after an abuse, in MiB: what the databases may cache,
/// and what the allocator keeps of what was in use.
const MEMORY_AT_REST_MIB: u64 = 1 << 10;

/// Open files of one member beyond those before an abuse, once it is over.
const FILES_SLACK: u64 = 100;

/// How long a member may take to give back what an abuse took.
const RECOVERY: Duration = Duration::from_secs(45);

/// Looks at each member again and again. Dropping it ends that.
#[derive(Debug)]
pub struct Watch {
    pids: Vec<(u64, u32)>,
    peaks: Arc<Peaks>,
    task: JoinHandle<()>,
}

// A lock because one task looks and another asks; held for one addition.
#[derive(Debug, Default)]
struct Peaks(Mutex<Peak>);

/// The most that any member took, and how often was looked.
#[derive(Debug, Clone, Copy, Default)]
pub struct Peak {
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Open files.
    pub files: u64,
    looks: u64,
}

impl Peaks {
    fn lock(&self) -> MutexGuard<'_, Peak> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, usage: Usage) {
        let mut peak = self.lock();
        peak.memory_mib = peak.memory_mib.max(usage.memory_kib >> 10);
        peak.files = peak.files.max(usage.files);
        peak.looks += 1;
    }
}

impl Watch {
    /// Begins to look at the members of a group, all of which run.
    pub fn start(group: &Group) -> Self {
        let with_pid = group.members().iter().filter_map(|member| Some((member.id, member.pid()?)));
        let pids: Vec<_> = with_pid.collect();
        let peaks = Arc::<Peaks>::default();
        let (looked, noted) = (pids.clone(), Arc::clone(&peaks));
        let task = tokio::spawn(async move {
            let mut looks = interval(LOOK);
            loop {
                looks.tick().await;
                for usage in looked.iter().filter_map(|(_, pid)| Usage::of(*pid)) {
                    noted.note(usage);
                }
            }
        });
        Self { pids, peaks, task }
    }

    /// The most since this was asked last, which must be within the bound.
    pub fn peak(&self, what: &str, figures: &Figures) -> Peak {
        let peak = std::mem::take(&mut *self.peaks.lock());
        figures.count("looks at memory and files", peak.looks);
        if peak.memory_mib > MOST_MEMORY_MIB {
            let memory = peak.memory_mib;
            figures.violation(format!("{what}: a member took {memory} MiB of memory"));
        }
        peak
    }

    /// What each member takes now.
    pub fn now(&self) -> Vec<(u64, Usage)> {
        let usage = |(id, pid): &(u64, u32)| Some((*id, Usage::of(*pid)?));
        self.pids.iter().filter_map(usage).collect()
    }

    /// Waits until each member has given back what an abuse took.
    pub async fn recovered(
        &self,
        what: &str,
        before: &[(u64, Usage)],
        figures: &Figures,
    ) -> Result<()> {
        let mut last = Vec::new();
        let recovered = within(RECOVERY, "memory and files as before", async || {
            last = self.now();
            let files_before = |id| before.iter().find(|(of, _)| *of == id).map(|(_, u)| u.files);
            let is_back = |(id, usage): &(u64, Usage)| {
                usage.memory_kib >> 10 <= MEMORY_AT_REST_MIB
                    && files_before(*id).is_some_and(|files| usage.files <= files + FILES_SLACK)
            };
            (last.len() == before.len() && last.iter().all(is_back)).then_some(())
        });
        if recovered.await.is_err() {
            figures.violation(format!("{what}: not given back: {before:?}, then {last:?}"));
        }
        figures.count("recoveries", 1);
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
