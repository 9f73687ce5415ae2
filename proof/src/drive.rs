//! Running a job's future to its end, or until a signal.

use std::{
    future::Future,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    thread,
};

use nix::sched::{CloneFlags, setns};
use tokio::{
    runtime::{Builder, Runtime},
    select,
    signal::unix::{SignalKind, signal},
};

use crate::{Failure, Result, report::During};

/// Runs a job. On SIGINT and SIGTERM its future is dropped, and with it
/// whatever it has started and made.
///
/// # Errors
/// Those of the job; [`Failure::Interrupted`] after a signal.
pub fn drive<T>(job: impl Future<Output = Result<T>>) -> Result<T> {
    run(Builder::new_multi_thread().enable_all().build().during("start the runtime")?, job)
}

/// As [`drive`], for the job that `make` makes, with all its sockets in another
/// network namespace.
///
/// # Errors
/// Those of the job, or that the namespace cannot be entered.
pub fn drive_in<T: Send, J: Future<Output = Result<T>>>(
    namespace: &Arc<OwnedFd>,
    make: impl FnOnce() -> J + Send,
) -> Result<T> {
    let inside = || {
        enter(namespace)?;
        let namespace = Arc::clone(namespace);
        let mut builder = Builder::new_multi_thread();
        builder.enable_all().on_thread_start(move || {
            // Its parent thread has just done the same.
            if let Err(failure) = enter(&namespace) {
                eprintln!("a thread stays outside of the namespace: {failure}");
                std::process::abort();
            }
        });
        run(builder.build().during("start the runtime")?, make())
    };
    // A thread of its own, so that this one stays where it is.
    thread::scope(|scope| {
        let panicked = |_| Failure::failed("the job panicked");
        scope.spawn(inside).join().map_err(panicked)?
    })
}

fn enter(namespace: &OwnedFd) -> Result<()> {
    setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).during("enter a network namespace")
}

fn run<T>(runtime: Runtime, job: impl Future<Output = Result<T>>) -> Result<T> {
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).during("listen for SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).during("listen for SIGTERM")?;
        select! {
            done = job => done,
            _ = interrupt.recv() => Err(Failure::Interrupted),
            _ = terminate.recv() => Err(Failure::Interrupted),
        }
    })
}
