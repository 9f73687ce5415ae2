//! Children that end with their parent.

use std::{
    io,
    os::unix::process::CommandExt,
    process::{Child, Command},
    sync::{Mutex, OnceLock, PoisonError, mpsc},
};

use nix::{
    sys::{prctl, signal::Signal},
    unistd::{getpid, getppid},
};

struct Job {
    command: Command,
    started: mpsc::Sender<io::Result<Child>>,
}

/// Starts a child that is killed when this process ends, however that happens.
///
/// # Errors
/// What the system says when it cannot be started.
pub fn spawn(mut command: Command) -> io::Result<Child> {
    // The kernel counts the *thread* that started a child as its parent, so
    // that one thread does it which lives as long as the process.
    static SPAWNER: OnceLock<Mutex<mpsc::Sender<Job>>> = OnceLock::new();
    let parent = getpid();
    let die_with_parent = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // It may have ended before the line above.
        if getppid() == parent { Ok(()) } else { Err(io::Error::other("the parent has ended")) }
    };
    // SAFETY: between fork and exec only system calls are made, and nothing is
    // allocated unless it fails.
    unsafe { command.pre_exec(die_with_parent) };
    let (started, answer) = mpsc::channel();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for mut job in queue {
                // Whoever asked may be gone; then so is the handle, not the child.
                let _ = job.started.send(job.command.spawn());
            }
        });
        Mutex::new(jobs)
    });
    let gone = || io::Error::other("the thread that starts processes is gone");
    let sent =
        spawner.lock().unwrap_or_else(PoisonError::into_inner).send(Job { command, started });
    sent.map_err(|_| gone())?;
    answer.recv().map_err(|_| gone())?
}
