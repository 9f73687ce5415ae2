//! Members of a store as processes of this machine, their data in a directory
//! of their own.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{Result, Stop};

/// How long members may take until they answer.
const START_LIMIT: Duration = Duration::from_secs(120);

/// Time between two looks at whether they do.
const LOOK: Duration = Duration::from_millis(5);

/// A store to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// This one.
    Metastore,
    /// The one to compare it with.
    Etcd,
}

impl Store {
    /// Both, in the order of the table.
    pub const ALL: [Self; 2] = [Self::Metastore, Self::Etcd];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Metastore => "metastore",
            Self::Etcd => "etcd",
        }
    }
}

/// A member: where it listens, and its process.
#[derive(Debug)]
struct Member {
    id: usize,
    client_port: u16,
    peer_port: u16,
    process: Option<Child>,
}

/// A cluster. Dropping it ends its processes and removes its data.
#[derive(Debug)]
pub struct Cluster {
    store: Store,
    program: PathBuf,
    // Dropped in this order: processes first, then their directory.
    members: Vec<Member>,
    dir: TempDir,
}

impl Cluster {
    /// So many members of a store, which answer linearizable reads.
    ///
    /// # Errors
    /// When they do not.
    pub fn start(store: Store, program: &Path, size: usize) -> Result<Self> {
        let dir = TempDir::with_prefix("metastore-bench-")
            .map_err(|cause| Stop::failed("make a directory", &cause))?;
        // All at once, so that no port is given out twice.
        let listeners: std::io::Result<Vec<_>> =
            (0..2 * size).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
        let listeners = listeners.map_err(|cause| Stop::failed("find a free port", &cause))?;
        let ports: std::io::Result<Vec<_>> =
            listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect();
        let ports = ports.map_err(|cause| Stop::failed("find a free port", &cause))?;
        drop(listeners);
        let members = ports.chunks_exact(2).zip(1..).map(|(ports, id)| {
            let (client_port, peer_port) = (ports[0], ports[1]);
            Member { id, client_port, peer_port, process: None }
        });
        let mut cluster =
            Self { store, program: program.to_owned(), members: members.collect(), dir };
        cluster.start_all()?;
        Ok(cluster)
    }

    /// Starts those that do not run, and waits until all answer linearizable reads;
    /// how long that took.
    ///
    /// # Errors
    /// When they do not.
    pub fn start_all(&mut self) -> Result<Duration> {
        let start = Instant::now();
        for at in 0..self.members.len() {
            self.start_one(at)?;
        }
        for endpoint in self.endpoints() {
            if until_it_answers(&endpoint, start + START_LIMIT).is_none() {
                let (name, dir) = (self.store.name(), self.dir.path().display());
                let why = format!("{name} at {endpoint} answers nothing; see {dir}");
                self.dir.disable_cleanup(true);
                return Err(Stop::Failed(why));
            }
        }
        Ok(start.elapsed())
    }

    /// Starts a member, unless it runs, without waiting for it.
    ///
    /// # Errors
    /// When its program cannot be started.
    pub fn start_one(&mut self, at: usize) -> Result<()> {
        if self.members[at].process.is_none() {
            let process = self.spawn(at)?;
            self.members[at].process = Some(process);
        }
        Ok(())
    }

    /// Has all members end as they like to.
    ///
    /// # Errors
    /// When one does not.
    pub fn stop_all(&mut self) -> Result<()> {
        (0..self.members.len()).try_for_each(|at| self.stop(at))
    }

    /// Has a member end as it likes to.
    ///
    /// # Errors
    /// When it does not.
    pub fn stop(&mut self, at: usize) -> Result<()> {
        let Some(mut process) = self.members[at].process.take() else { return Ok(()) };
        let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Stop::Failed("a process without an id".to_owned()))?;
        kill_process(pid, Signal::TERM).map_err(|cause| Stop::failed("stop a member", &cause))?;
        process.wait().map_err(|cause| Stop::failed("stop a member", &cause)).map(drop)
    }

    /// A member that does not lead.
    ///
    /// # Errors
    /// When all say that they do.
    pub fn follower(&self) -> Result<usize> {
        let endpoints = self.endpoints();
        let leads = |endpoint: &String| metastore_bench::leads(endpoint);
        let follower = endpoints.iter().position(|endpoint| leads(endpoint) == Some(false));
        follower.ok_or_else(|| Stop::Failed("no member says that it follows".to_owned()))
    }

    fn spawn(&self, at: usize) -> Result<Child> {
        let Member { id, client_port, peer_port, .. } = &self.members[at];
        let url = |port: &u16| format!("http://127.0.0.1:{port}");
        let data = self.dir.path().join("data");
        let mut command = Command::new(&self.program);
        match self.store {
            Store::Metastore => {
                let peers: Vec<_> = self.members.iter().map(|one| url(&one.peer_port)).collect();
                command
                    .args(["--id", &id.to_string(), "--cluster", &peers.join(",")])
                    .args(["--port", &client_port.to_string()])
                    .arg("--data-dir")
                    .arg(data);
            }
            Store::Etcd => {
                let peers: Vec<_> = self
                    .members
                    .iter()
                    .map(|one| format!("m{}={}", one.id, url(&one.peer_port)))
                    .collect();
                command
                    .args(["--name", &format!("m{id}")])
                    .args(["--initial-cluster", &peers.join(",")])
                    .args(["--initial-advertise-peer-urls", &url(peer_port)])
                    .args(["--listen-peer-urls", &url(peer_port)])
                    .args(["--advertise-client-urls", &url(client_port)])
                    .args(["--listen-client-urls", &url(client_port)])
                    // As much as it takes; metastore has no bound by default.
                    .args(["--quota-backend-bytes", &(8_u64 << 30).to_string()])
                    .arg("--data-dir")
                    .arg(data.join(id.to_string()));
            }
        }
        let log = self.dir.path().join(format!("{id}.log"));
        let log = File::options().create(true).append(true).open(log);
        let log = log.map_err(|cause| Stop::failed("open a log", &cause))?;
        let output = log.try_clone().map_err(|cause| Stop::failed("open a log", &cause))?;
        command.stdin(Stdio::null()).stdout(output).stderr(log);
        for (name, _) in std::env::vars_os() {
            let name_text = name.to_string_lossy();
            if name_text.starts_with("METASTORE_") || name_text.starts_with("ETCD_") {
                command.env_remove(name);
            }
        }
        let program = self.program.display();
        command.spawn().map_err(|cause| Stop::failed(&format!("start {program}"), &cause))
    }

    /// Client URLs of the members that run.
    pub fn endpoints(&self) -> Vec<String> {
        let running = self.members.iter().zip(0..).filter(|(member, _)| member.process.is_some());
        running.map(|(_, at)| self.endpoint(at)).collect()
    }

    /// The client URL of a member.
    pub fn endpoint(&self, at: usize) -> String {
        format!("http://127.0.0.1:{}", self.members[at].client_port)
    }

    /// What the members' processes took of the processors so far.
    ///
    /// # Errors
    /// When one is gone.
    pub fn cpu(&self) -> Result<Duration> {
        self.pids().map(cpu_of).sum::<Result<Duration>>()
    }

    /// The most memory that the members had, added up, in bytes.
    ///
    /// # Errors
    /// When one is gone.
    pub fn peak_memory(&self) -> Result<u64> {
        self.pids().map(|pid| memory_of(pid, "VmHWM:")).sum()
    }

    /// The memory that the members have, added up, in bytes.
    ///
    /// # Errors
    /// When one is gone.
    pub fn memory(&self) -> Result<u64> {
        self.pids().map(|pid| memory_of(pid, "VmRSS:")).sum()
    }

    fn pids(&self) -> impl Iterator<Item = u32> {
        self.members.iter().filter_map(|member| member.process.as_ref()).map(Child::id)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.members.iter_mut().filter_map(|member| member.process.as_mut()) {
            // One that is gone already is as good.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Waits until a member answers linearizable reads, but not after `limit`; when
/// it did.
pub fn until_it_answers(endpoint: &str, limit: Instant) -> Option<Instant> {
    while !metastore_bench::answers(endpoint) {
        if Instant::now() > limit {
            return None;
        }
        thread::sleep(LOOK);
    }
    Some(Instant::now())
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).map_err(|cause| Stop::failed(&format!("read {path}"), &cause))
}

/// User and system time of a process and its threads.
fn cpu_of(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = read(&path)?;
    // Its name, in brackets, may hold anything; the times are the 14th and 15th field.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: Option<u64> = fields.skip(11).take(2).map(|field| field.parse::<u64>().ok()).sum();
    let ticks = ticks.ok_or_else(|| Stop::Failed(format!("{path} is not as expected: {stat}")))?;
    Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
}

/// A line of a process's status that is a size in KiB, in bytes.
fn memory_of(pid: u32, name: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = read(&path)?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| Stop::Failed(format!("{path} has no line {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_says_what_it_takes() {
        let pid = std::process::id();
        assert!(memory_of(pid, "VmHWM:").expect("memory") > 1 << 20);
        let before = cpu_of(pid).expect("a time");
        // Until the clock, which ticks a hundred times a second, has moved.
        while cpu_of(pid).expect("a time") == before {
            std::hint::spin_loop();
        }
        assert!(cpu_of(u32::MAX).is_err() && memory_of(u32::MAX, "VmHWM:").is_err());
    }
}
