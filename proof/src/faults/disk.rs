//! Disks that fail on demand.
//!
//! A small library (`shim/disk.c`) is preloaded into a member's process. It
//! counts the calls that read or change files below the member's directory,
//! and by a page of memory shared with this process it makes some of them
//! fail, wait or fall short.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
};

use crate::{Result, process::Member, report::During};

/// The library, compiled along with this crate.
static LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/disk.so"));

/// What calls do. A set: `Calls::WRITE | Calls::SYNC`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calls(u64);

impl Calls {
    /// Making files, directories and names.
    pub const CREATE: Self = Self(1 << 0);
    /// Writing bytes.
    pub const WRITE: Self = Self(1 << 1);
    /// Reserving and giving back space.
    pub const ALLOCATE: Self = Self(1 << 2);
    /// Making durable.
    pub const SYNC: Self = Self(1 << 3);
    /// Reading bytes.
    pub const READ: Self = Self(1 << 4);
    /// Everything that a full disk refuses.
    pub const SPACE: Self = Self(0b111);
    /// Everything that changes the disk.
    pub const CHANGE: Self = Self(0b1111);
}

/// What files are for. A set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Files(u64);

impl Files {
    /// The raft database.
    pub const RAFT: Self = Self(1 << 0);
    /// The state database.
    pub const STATE: Self = Self(1 << 1);
    /// Snapshots, made and received.
    pub const SNAP: Self = Self(1 << 2);
    /// The watermark.
    pub const MARK: Self = Self(1 << 3);
    /// All of them, and the directories above.
    pub const ALL: Self = Self(0b1_1111);
}

impl std::ops::BitOr for Files {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What happens to a call.
#[derive(Debug, Clone, Copy)]
pub enum Action {
    /// It fails and has no effect.
    Fail(Errno),
    /// It waits this long, then takes place.
    Delay(Duration),
    /// A write takes half of what it was given.
    Short,
    /// A sync does nothing and says that it has succeeded.
    Lie,
}

/// Which calls are hit, and how.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// What happens to them.
    pub action: Action,
    /// What they do.
    pub calls: Calls,
    /// To what files.
    pub files: Files,
    /// The first of them that is hit, counted from 1 when the rule is set.
    pub first: u64,
    /// How many are hit from there on.
    pub times: u64,
}

impl Rule {
    /// Every such call from now on.
    pub fn always(action: Action, calls: Calls, files: Files) -> Self {
        Self { action, calls, files, first: 1, times: u64::MAX }
    }

    /// The next such call.
    pub fn once(action: Action, calls: Calls, files: Files) -> Self {
        Self { times: 1, ..Self::always(action, calls, files) }
    }
}

/// The shared page, as `struct page` in `shim/disk.c`.
#[derive(Debug, Default)]
#[repr(C)]
struct Page {
    action: AtomicU64,
    calls: AtomicU64,
    files: AtomicU64,
    first: AtomicU64,
    times: AtomicU64,
    error: AtomicU64,
    delay: AtomicU64,
    seen: AtomicU64,
    hits: AtomicU64,
    waiting: AtomicU64,
    total: [AtomicU64; 5],
}

/// The disk of one member, from its next start on.
#[derive(Debug)]
pub struct FaultyDisk {
    page: NonNull<Page>,
    library: PathBuf,
    file: PathBuf,
}

// SAFETY: the page consists of atomics and is unmapped only when this is dropped.
unsafe impl Send for FaultyDisk {}
// SAFETY: as above.
unsafe impl Sync for FaultyDisk {}

impl FaultyDisk {
    /// Puts itself between the member and its data from the next start on. The
    /// library and the shared page are kept in `dir`.
    ///
    /// # Errors
    /// When they cannot be written or mapped.
    pub fn new(member: &mut Member, dir: &Path) -> Result<Self> {
        let library = dir.join("faulty-disk.so");
        if !library.exists() {
            fs::write(&library, LIBRARY).during("write the library of a faulty disk")?;
        }
        let file = dir.join(format!("faulty-disk-{}", member.id));
        let page = map(&file).during("share a page with a faulty disk")?;
        let disk = Self { page, library, file };
        disk.serve(member);
        Ok(disk)
    }

    /// As [`new`](Self::new), for a member that takes the place of the first.
    pub fn serve(&self, member: &mut Member) {
        member.set_variable("LD_PRELOAD", self.library.display().to_string());
        member.set_variable("METASTORE_FAULTS_DIR", member.data().display().to_string());
        member.set_variable("METASTORE_FAULTS_PAGE", self.file.display().to_string());
    }

    fn page(&self) -> &Page {
        // SAFETY: mapped until this is dropped, and zero bytes are a page.
        unsafe { self.page.as_ref() }
    }

    /// From now on this rule holds, and no other.
    pub fn set(&self, rule: Rule) {
        let page = self.page();
        self.clear();
        let (action, error, delay) = match rule.action {
            Action::Fail(errno) => (1, errno as u64, Duration::ZERO),
            Action::Delay(delay) => (2, 0, delay),
            Action::Short => (3, 0, Duration::ZERO),
            Action::Lie => (4, 0, Duration::ZERO),
        };
        let delay = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        for (place, value) in [
            (&page.calls, rule.calls.0),
            (&page.files, rule.files.0),
            (&page.first, rule.first),
            (&page.times, rule.times),
            (&page.error, error),
            (&page.delay, delay),
            (&page.seen, 0),
            (&page.hits, 0),
            // Last, because it makes the others count.
            (&page.action, action),
        ] {
            place.store(value, Ordering::SeqCst);
        }
    }

    /// From now on the disk is sound, and calls that wait go on.
    pub fn clear(&self) {
        self.page().action.store(0, Ordering::SeqCst);
    }

    /// Calls that the rule was about since it was set.
    pub fn seen(&self) -> u64 {
        self.page().seen.load(Ordering::SeqCst)
    }

    /// Those among them that were hit.
    pub fn hits(&self) -> u64 {
        self.page().hits.load(Ordering::SeqCst)
    }

    /// Calls that wait right now.
    pub fn waiting(&self) -> u64 {
        self.page().waiting.load(Ordering::SeqCst)
    }

    /// All calls ever, rule or not: create, write, allocate, sync, read.
    pub fn totals(&self) -> [u64; 5] {
        self.page().total.each_ref().map(|total| total.load(Ordering::SeqCst))
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        self.clear();
        // SAFETY: mapped by `map` with this length, and nobody keeps a
        // reference into it.
        let _ = unsafe { munmap(self.page.cast(), size_of::<Page>()) };
    }
}

fn map(path: &Path) -> std::io::Result<NonNull<Page>> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
    file.set_len(size_of::<Page>() as u64)?;
    let length =
        std::num::NonZeroUsize::new(size_of::<Page>()).unwrap_or(std::num::NonZero::<usize>::MIN);
    // SAFETY: a new mapping, of a file that is as long.
    let page = unsafe {
        mmap(
            None,
            length,
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            MapFlags::MAP_SHARED,
            &file,
            0,
        )
    };
    Ok(page?.cast())
}
