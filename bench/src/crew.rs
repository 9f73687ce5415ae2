//! The threads of a run. Each has a runtime and connections of its own, so that
//! nothing a request needs is shared between them.

use std::{
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use tokio::{runtime, task::JoinSet};

use crate::Failure;

/// Time between two looks at how far the run has come.
const LOOK: Duration = Duration::from_millis(200);

/// Runs the tasks of each thread until all have ended; what they brought, in
/// no particular order. Calls `look` now and then meanwhile.
///
/// # Errors
/// When a thread cannot be had, or a task ended in a failure: the first one.
pub fn run<T, F>(work: Vec<Vec<F>>, mut look: impl FnMut()) -> Result<Vec<T>, Failure>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Failure>> + Send + 'static,
{
    let (sender, receiver) = channel();
    let no_thread = |cause: &dyn std::fmt::Display| {
        Failure::new(format!("cannot start a thread: {cause}"), "give fewer --threads")
    };
    for tasks in work {
        let runtime = runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|cause| no_thread(&cause))?;
        let sender = sender.clone();
        let thread = thread::Builder::new().name("bench".into());
        let started = thread.spawn(move || {
            runtime.block_on(async {
                let mut tasks: JoinSet<_> = tasks.into_iter().collect();
                while let Some(ended) = tasks.join_next().await {
                    let panicked = |_| Failure::new("a client panicked", "report this as a bug");
                    // Nobody listens any more once one has failed.
                    let _ = sender.send(ended.map_err(panicked).and_then(|ended| ended));
                }
            });
        });
        started.map_err(|cause| no_thread(&cause))?;
    }
    drop(sender);
    let mut brought = Vec::new();
    loop {
        match receiver.recv_timeout(LOOK) {
            Ok(ended) => brought.push(ended?),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(brought),
        }
        look();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_tasks_of_all_threads_are_awaited() {
        let task = |number: u64| async move { Ok::<_, Failure>(number) };
        let work = vec![vec![task(1), task(2)], vec![task(3)], vec![]];
        let mut looks = 0;
        let mut brought = run(work, || looks += 1).expect("nothing fails");
        brought.sort_unstable();
        assert_eq!(brought, [1, 2, 3]);
        assert!(looks >= 3);
    }

    #[test]
    fn one_failure_ends_it() {
        let task = |number: u64| async move {
            match number {
                2 => Err(Failure::new("it failed", "try again")),
                number => Ok(number),
            }
        };
        let failed = run(vec![vec![task(1)], vec![task(2)]], || {}).expect_err("one fails");
        assert_eq!(failed.what, "it failed");
    }
}
