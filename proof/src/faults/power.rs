//! Disks whose power can be cut.
//!
//! A disk is a filesystem in an image file, mounted through a loop device. Its
//! power is cut with the filesystem's own shutdown call, told not to write its
//! journal out: from that moment on nothing reaches the image, and what was
//! written but not synced is gone, journal and all. Mounting it again replays
//! the journal, as after any power cut.
//!
//! Mounts are private to the thread that enters [`private_mounts`] and to what
//! it starts, so that nothing is left of them when the process ends, however
//! that happens.

use std::{
    fmt,
    fs::File,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    unistd::geteuid,
};

use crate::{
    Failure, Result,
    process::{spawn, within},
    report::During,
};

/// Bytes of an image. XFS makes no filesystem smaller than 300 MiB; the image
/// is sparse, so that only what is written takes space.
const IMAGE_BYTES: u64 = 1 << 30;

/// "The power is gone": do not even write the journal out. The same number for
/// ext4 (`EXT4_GOING_FLAGS_NOLOGFLUSH`) and XFS (`XFS_FSOP_GOING_FLAGS_NOLOGFLUSH`).
const NO_LOG_FLUSH: u32 = 2;

/// How long a filesystem may stay busy once nobody uses it.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(10);

nix::ioctl_read! {
    /// `EXT4_IOC_SHUTDOWN` and `XFS_IOC_GOINGDOWN`, which are one.
    shut_down, b'X', 125, u32
}

/// A kind of filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filesystem {
    /// ext4, with an ordered journal.
    Ext4,
    /// XFS.
    Xfs,
}

impl Filesystem {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::Ext4, Self::Xfs];

    /// Its name, as `mount` knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    /// Options of `mount`. ext4 would otherwise sync a file by itself when it
    /// is renamed over another, and forgive a program that forgot to.
    fn options(self) -> &'static str {
        match self {
            Self::Ext4 => "loop,noauto_da_alloc",
            Self::Xfs => "loop",
        }
    }

    fn make(self, image: &Path) -> Result<()> {
        let mut command = Command::new(format!("mkfs.{}", self.name()));
        match self {
            Self::Ext4 => command.args(["-q", "-F", "-E", "lazy_itable_init=1"]),
            Self::Xfs => command.args(["-q", "-f"]),
        };
        run(command.arg(image))
    }
}

impl fmt::Display for Filesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Gives this thread, and the threads and processes it starts from now on,
/// mounts that the rest of the system does not see. All threads that call this
/// share them.
///
/// # Errors
/// [`Failure::NotRun`] when this user may not.
pub fn private_mounts() -> Result<()> {
    // A lock because jobs of one process may begin at the same time.
    static NAMESPACE: Mutex<Option<File>> = Mutex::new(None);
    if !geteuid().is_root() {
        return Err(Failure::not_run("only root can mount filesystems"));
    }
    let mut namespace = NAMESPACE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(namespace) = namespace.as_ref() {
        // Threads that share a root directory cannot part otherwise.
        unshare(CloneFlags::CLONE_FS).during("leave the mounts of the others")?;
        return setns(namespace, CloneFlags::CLONE_NEWNS).during("enter private mounts");
    }
    unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| {
            let flags = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
            mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        })
        .map_err(|cause| Failure::not_run(format!("no mount namespace can be made: {cause}")))?;
    let own = File::open("/proc/thread-self/ns/mnt").during("open a mount namespace")?;
    *namespace = Some(own);
    Ok(())
}

/// A filesystem of its own, in an image file. Dropping it unmounts it; the
/// image goes with its directory.
#[derive(Debug)]
pub struct Disk {
    filesystem: Filesystem,
    image: PathBuf,
    at: PathBuf,
    mounted: bool,
}

impl Disk {
    /// Makes a filesystem and mounts it, image and mount point in `dir`, which
    /// is made.
    ///
    /// # Errors
    /// [`Failure::NotRun`] when filesystems of this kind, or loop devices, are
    /// not to be had here.
    pub fn new(filesystem: Filesystem, dir: &Path) -> Result<Self> {
        let (image, at) = (dir.join("image"), dir.join("disk"));
        std::fs::create_dir_all(&at).during("make a mount point")?;
        let sized = File::create(&image).and_then(|file| file.set_len(IMAGE_BYTES));
        sized.during("make an image file")?;
        let mut disk = Self { filesystem, image, at, mounted: false };
        let tried = filesystem.make(&disk.image).and_then(|()| disk.mount());
        tried.map_err(|failure| Failure::not_run(failure.to_string()))?;
        disk.check_seen_by_children()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Mounts it, which replays its journal.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn mount(&mut self) -> Result<()> {
        let mut command = Command::new("mount");
        command.args(["-t", self.filesystem.name(), "-o", self.filesystem.options()]);
        run(command.arg(&self.image).arg(&self.at))?;
        self.mounted = true;
        Ok(())
    }

    /// Cuts its power. Whoever uses it gets I/O errors from now on.
    ///
    /// # Errors
    /// When the filesystem refuses.
    pub fn cut(&self) -> Result<()> {
        let root = File::open(&self.at).during("open a disk")?;
        let mut how = NO_LOG_FLUSH;
        // SAFETY: the call reads one u32, which outlives it, and keeps nothing.
        unsafe { shut_down(root.as_raw_fd(), &raw mut how) }.during("cut the power of a disk")?;
        Ok(())
    }

    /// Unmounts it. Nobody may use it any more.
    ///
    /// # Errors
    /// When it stays busy.
    pub async fn unmount(&mut self) -> Result<()> {
        // A process that was just reaped may have threads that still let go.
        within(UNMOUNT_LIMIT, "a disk that nobody uses", async || {
            umount2(&self.at, MntFlags::empty()).ok()
        })
        .await?;
        self.mounted = false;
        Ok(())
    }

    /// Processes are started by a thread of their own, which sees these mounts
    /// only if it was started after [`private_mounts`].
    fn check_seen_by_children(&self) -> Result<()> {
        let mut command = Command::new("mountpoint");
        command.arg("-q").arg(&self.at);
        let seen = spawn(command).and_then(|mut child| child.wait());
        if seen.during("look for a disk")?.success() {
            return Ok(());
        }
        Err(Failure::failed("processes were started before the disks were made private"))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            // At the latest it goes with this process.
            let _ = umount2(&self.at, MntFlags::MNT_DETACH);
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().during(format_args!("run {:?}", command.get_program()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::failed(format!("{:?}: {}", command.get_program(), said.trim())))
}
