//! What a job did, and whether that was enough.

use std::{
    fmt::{self, Write as _},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// The exit code of a job that cannot be done on this machine.
pub const NOT_RUN: u8 = 77;

/// Violations of one kind that are shown; more of them say nothing new.
const SHOWN_OF_A_KIND: usize = 3;

/// Characters without digits by which kinds are told apart.
const KIND_CHARS: usize = 20;

/// Violations that are shown at all.
const SHOWN_VIOLATIONS: usize = 100;

/// Why a job has no figures, or bad ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// It cannot be done on this machine: what is missing. Never a success.
    NotRun(String),
    /// A promise was broken, too little was checked, or the job itself failed.
    Failed(String),
    /// Somebody asked it to stop.
    Interrupted,
}

/// The result of whatever a job consists of.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failed job.
    pub fn failed(what: impl Into<String>) -> Self {
        Self::Failed(what.into())
    }

    /// A job that cannot be done here.
    pub fn not_run(why: impl Into<String>) -> Self {
        Self::NotRun(why.into())
    }

    /// The exit code of the process: 1, 77 or 130.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::NotRun(_) => NOT_RUN,
            Self::Interrupted => 130,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRun(why) => write!(f, "NOT RUN: {why}"),
            Self::Failed(what) => write!(f, "FAILED: {what}"),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

/// Any error ends a job. (As for every type of this kind, `Failure` is no
/// `Error` itself, or this could not be.)
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            // Cannot fail: the target is a string.
            let _ = write!(text, ": {inner}");
            cause = inner.source();
        }
        Self::Failed(text)
    }
}

/// Says what was being done when an error came.
pub trait During<T> {
    /// Puts `what` before the error's own words.
    ///
    /// # Errors
    /// The same as before, if there was one.
    fn during(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: Into<Failure>> During<T> for std::result::Result<T, E> {
    fn during(self, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| match error.into() {
            Failure::Failed(why) => Failure::Failed(format!("{what}: {why}")),
            Failure::NotRun(why) => Failure::NotRun(format!("{what}: {why}")),
            Failure::Interrupted => Failure::Interrupted,
        })
    }
}

/// One counter.
#[derive(Debug)]
struct Figure {
    name: String,
    count: u64,
    /// The least that counts as done; 0 when it is only told.
    target: u64,
}

#[derive(Debug, Default)]
struct Counted {
    figures: Vec<Figure>,
    violations: Vec<String>,
    /// Including those that are not kept.
    violation_count: u64,
}

impl Counted {
    fn figure(&mut self, name: &str) -> &mut Figure {
        let at = self.figures.iter().position(|figure| figure.name == name).unwrap_or_else(|| {
            self.figures.push(Figure { name: name.to_owned(), count: 0, target: 0 });
            self.figures.len() - 1
        });
        &mut self.figures[at]
    }
}

/// What a job did: named counters, each with the least it must reach, and the
/// promises that were found broken. Shared by reference between tasks.
#[derive(Debug)]
pub struct Figures {
    job: String,
    started: Instant,
    // A lock because faults, load and checks count at the same time; held for
    // one addition.
    counted: Mutex<Counted>,
}

impl Figures {
    /// The figures of a job, called as in its command.
    pub fn new(job: impl Into<String>) -> Self {
        Self { job: job.into(), started: Instant::now(), counted: Mutex::default() }
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts something that was done or checked. Counters are shown in the
    /// order in which they are first named.
    pub fn count(&self, name: &str, more: u64) {
        self.counted().figure(name).count += more;
    }

    /// A counter must reach a target, or the job has failed.
    pub fn require(&self, name: &str, target: u64) {
        self.counted().figure(name).target = target;
    }

    /// How far a counter is.
    pub fn counted_so_far(&self, name: &str) -> u64 {
        let counted = self.counted();
        counted.figures.iter().find(|figure| figure.name == name).map_or(0, |figure| figure.count)
    }

    /// Whether a counter has reached its target.
    pub fn is_reached(&self, name: &str) -> bool {
        let counted = self.counted();
        let figure = counted.figures.iter().find(|figure| figure.name == name);
        figure.is_none_or(|figure| figure.count >= figure.target)
    }

    /// A promise was broken. The first few of each kind are told at once on
    /// standard error; the job goes on to find more, and fails in the end.
    pub fn violation(&self, what: impl Into<String>) {
        let what = what.into();
        let mut counted = self.counted();
        counted.violation_count += 1;
        let kind = kind(&what);
        let known = counted.violations.iter().filter(|shown| self::kind(shown) == kind).count();
        if known < SHOWN_OF_A_KIND && counted.violations.len() < SHOWN_VIOLATIONS {
            eprintln!("{}: VIOLATION: {what}", self.job);
            counted.violations.push(what);
        }
    }

    /// How many promises were broken so far.
    pub fn violations(&self) -> u64 {
        self.counted().violation_count
    }

    /// The figures as one row of a table in Markdown.
    pub fn row(&self) -> String {
        let counted = self.counted();
        let figures: Vec<String> = counted
            .figures
            .iter()
            .map(|figure| format!("{} {}", figure.count, figure.name))
            .collect();
        let seconds = self.started.elapsed().as_secs();
        format!(
            "| `{}` | {} | {} violations | {}:{:02} min |",
            self.job,
            figures.join(", "),
            counted.violation_count,
            seconds / 60,
            seconds % 60
        )
    }

    /// The verdict.
    ///
    /// # Errors
    /// When a promise was broken or a target missed: all of them.
    pub fn finish(&self) -> Result<()> {
        let counted = self.counted();
        let mut failures = Vec::new();
        if let Some(first) = counted.violations.first() {
            let first = first.lines().next().unwrap_or_default();
            failures.push(format!("{} violations, first: {first}", counted.violation_count));
        }
        for Figure { name, count, target } in &counted.figures {
            if count < target {
                failures.push(format!("only {count} {name} of at least {target}"));
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(Failure::Failed(failures.join("; "))) }
    }
}

/// What violations of the same sort have in common: how they begin.
fn kind(what: &str) -> String {
    what.chars().filter(|c| !c.is_ascii_digit()).take(KIND_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enough_of_everything_passes() {
        let figures = Figures::new("job");
        figures.require("kills", 2);
        figures.count("kills", 1);
        figures.count("writes", 5);
        figures.count("kills", 1);
        assert!(figures.is_reached("kills"));
        assert_eq!(figures.finish(), Ok(()));
        assert!(figures.row().starts_with("| `job` | 2 kills, 5 writes | 0 violations | 0:0"));
    }

    #[test]
    fn too_little_fails_also_when_nothing_was_counted() {
        let figures = Figures::new("job");
        figures.require("kills", 2);
        assert_eq!(figures.finish(), Err(Failure::failed("only 0 kills of at least 2")));
        figures.count("kills", 1);
        assert!(!figures.is_reached("kills"));
        assert_eq!(figures.finish(), Err(Failure::failed("only 1 kills of at least 2")));
    }

    #[test]
    fn a_violation_fails_whatever_was_reached() {
        let figures = Figures::new("job");
        figures.violation("a stale read\nwith details");
        let failure = figures.finish().expect_err("a violation");
        assert_eq!(failure, Failure::failed("1 violations, first: a stale read"));
        assert_eq!(failure.exit_code(), 1);
        assert_eq!(Failure::not_run("no root").exit_code(), 77);
    }

    #[test]
    fn many_of_one_kind_do_not_hide_another() {
        let figures = Figures::new("job");
        for revision in 0..500 {
            figures.violation(format!("revision {revision} had been seen before"));
        }
        figures.violation("an acknowledged write is lost");
        let counted = figures.counted();
        assert_eq!((counted.violation_count, counted.violations.len()), (501, 4));
    }

    #[test]
    fn errors_are_told_with_what_was_being_done() {
        let failed: std::result::Result<(), _> = "x".parse::<u8>().map(drop);
        let failure = failed.during("read a number").expect_err("no number");
        assert_eq!(failure, Failure::failed("read a number: invalid digit found in string"));
        let not_run: Result<()> = Err(Failure::not_run("no root"));
        assert_eq!(not_run.during("mount"), Err(Failure::not_run("mount: no root")));
    }
}
