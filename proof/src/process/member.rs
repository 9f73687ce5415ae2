//! One process of the program under test.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};

use super::{DEADLINE, Endpoint, POLL, free_port, spawn};
use crate::{Failure, Result, report::During};

/// Lines of a log that a failure shows.
const TAIL_LINES: usize = 40;

/// How long the endpoint of a member waits for an answer: longer than any
/// request timeout that is set here.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// Where a member listens.
#[derive(Debug, Clone)]
pub struct Place {
    /// The address of both ports.
    pub host: IpAddr,
    /// The port for other members.
    pub peer_port: u16,
    /// The port for clients.
    pub client_port: u16,
    /// The network namespace of the process; `None` is that of this one.
    pub namespace: Option<Arc<OwnedFd>>,
}

impl Place {
    /// Free ports of 127.0.0.1.
    ///
    /// # Errors
    /// When there are none.
    pub fn on_loopback() -> Result<Self> {
        Ok(Self {
            host: Ipv4Addr::LOCALHOST.into(),
            peer_port: free_port()?,
            client_port: free_port()?,
            namespace: None,
        })
    }
}

/// A member: its flags, its data directory, and its process while it runs.
/// Dropping it kills the process.
#[derive(Debug)]
pub struct Member {
    /// The member's id.
    pub id: u64,
    binary: PathBuf,
    place: Place,
    flags: BTreeMap<String, Option<String>>,
    environment: BTreeMap<String, String>,
    /// What `--data-dir` says.
    data_dir: PathBuf,
    log_path: PathBuf,
    endpoint: Endpoint,
    child: Option<Child>,
    paused: bool,
    /// Where the present run's log begins in the log file.
    log_start: u64,
}

impl Member {
    /// A member that is not started, the only one of its cluster. Its data and
    /// its log are below `dir`.
    ///
    /// # Errors
    /// When no HTTP client can be made for it.
    pub fn new(id: u64, binary: &Path, place: Place, dir: &Path) -> Result<Self> {
        let endpoint =
            Endpoint::new(id, SocketAddr::new(place.host, place.client_port), ANSWER_LIMIT)?;
        let mut member = Self {
            id,
            binary: binary.to_owned(),
            flags: BTreeMap::new(),
            environment: BTreeMap::new(),
            data_dir: dir.join("data"),
            // By port, because members of different clusters may share directory and id.
            log_path: dir.join(format!("member-{id}-{}.log", place.client_port)),
            place,
            endpoint,
            child: None,
            paused: false,
            log_start: 0,
        };
        member.set("--id", id.to_string());
        member.set("--host", member.place.host.to_string());
        member.set("--port", member.place.client_port.to_string());
        member.set("--cluster", format!("{id}={}", member.peer_url()));
        member.set("--heartbeat-interval", "50ms");
        member.set("--election-timeout", "500ms");
        Ok(member)
    }

    /// Sets an option for the next start.
    pub fn set(&mut self, option: &str, value: impl Into<String>) {
        self.flags.insert(option.to_owned(), Some(value.into()));
    }

    /// Removes an option for the next start, so that its default holds.
    pub fn unset(&mut self, option: &str) {
        self.flags.remove(option);
    }

    /// Sets or clears `--join` for the next start.
    pub fn set_join(&mut self, join: bool) {
        if join {
            self.flags.insert("--join".to_owned(), None);
        } else {
            self.flags.remove("--join");
        }
    }

    /// Sets a variable of the process's environment for the next start.
    pub fn set_variable(&mut self, name: &str, value: impl Into<String>) {
        self.environment.insert(name.to_owned(), value.into());
    }

    /// Removes such a variable.
    pub fn unset_variable(&mut self, name: &str) {
        self.environment.remove(name);
    }

    /// The program of the next start.
    pub fn set_binary(&mut self, binary: &Path) {
        binary.clone_into(&mut self.binary);
    }

    /// What `--data-dir` says from the next start on; the member's own
    /// directory is one below it.
    pub fn set_data_dir(&mut self, data_dir: &Path) {
        data_dir.clone_into(&mut self.data_dir);
    }

    /// The member's own data directory.
    pub fn data(&self) -> PathBuf {
        self.data_dir.join(self.id.to_string())
    }

    /// The peer URL.
    pub fn peer_url(&self) -> String {
        format!("http://{}", SocketAddr::new(self.place.host, self.place.peer_port))
    }

    /// Where it listens.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The client port.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The id of the process, while there is one.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether the process was started, has not been seen to end, and is not
    /// paused.
    pub fn is_live(&self) -> bool {
        self.child.is_some() && !self.paused
    }

    /// Whether the process is paused.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Starts the process, which is killed when this one ends.
    ///
    /// # Errors
    /// When it runs already or cannot be started.
    pub fn start(&mut self) -> Result<()> {
        if self.child.is_some() {
            return Err(Failure::failed(format!("member {} runs already", self.id)));
        }
        let log = File::options().create(true).append(true).open(&self.log_path);
        let log = log.during(format_args!("open the log {}", self.log_path.display()))?;
        self.log_start = log.metadata().during("the size of a log")?.len();
        let mut command = Command::new(&self.binary);
        for (option, value) in &self.flags {
            command.arg(option).args(value);
        }
        command.arg("--data-dir").arg(&self.data_dir);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("METASTORE_") {
                command.env_remove(name);
            }
        }
        command.env("RUST_BACKTRACE", "1").envs(&self.environment);
        if let Some(directory) = self.log_path.parent() {
            // A relative path, used by mistake, must not leave the directory.
            command.current_dir(directory);
        }
        // A group of its own: Ctrl-C is for this process, which then ends it.
        command.process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        if let Some(namespace) = self.place.namespace.clone() {
            let enter = move || Ok(setns(&namespace, CloneFlags::CLONE_NEWNET)?);
            // SAFETY: between fork and exec only a system call is made.
            unsafe { command.pre_exec(enter) };
        }
        let what = format!("start {}", self.binary.display());
        self.child = Some(spawn(command).during(what)?);
        self.paused = false;
        // Pooled connections to the previous process would fail.
        self.endpoint = Endpoint::new(self.id, self.endpoint.address(), ANSWER_LIMIT)?;
        Ok(())
    }

    /// Waits until the member says that it is ready.
    ///
    /// # Errors
    /// When the process ends, or [`DEADLINE`] passes, before that.
    pub async fn wait_ready(&mut self) -> Result<()> {
        let start = Instant::now();
        while !self.endpoint.is_ready().await {
            if let Some(status) = self.ended()? {
                let (id, log) = (self.id, self.log_tail());
                return Err(Failure::failed(format!(
                    "member {id} ended ({status}) unready:\n{log}"
                )));
            }
            if start.elapsed() >= DEADLINE {
                let (id, log) = (self.id, self.log_tail());
                return Err(Failure::failed(format!("member {id} stays unready:\n{log}")));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Kills the process as `kill -9` does, paused or not, and reaps it.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        self.paused = false;
    }

    /// Stops the process with SIGTERM; its exit code, `None` after a signal.
    ///
    /// # Errors
    /// When it is down, or still runs after `limit`.
    pub async fn stop(&mut self, limit: Duration) -> Result<Option<i32>> {
        self.signal(Signal::SIGTERM)?;
        self.wait_end(limit).await
    }

    /// Waits until the process ends by itself; its exit code, `None` after a
    /// signal.
    ///
    /// # Errors
    /// When it is down, or still runs after `limit`.
    pub async fn wait_end(&mut self, limit: Duration) -> Result<Option<i32>> {
        let start = Instant::now();
        loop {
            if self.child.is_none() {
                return Err(Failure::failed(format!("member {} is down", self.id)));
            }
            if let Some(status) = self.ended()? {
                return Ok(status.code());
            }
            if start.elapsed() >= limit {
                let (id, log) = (self.id, self.log_tail());
                return Err(Failure::failed(format!("member {id} runs after {limit:?}:\n{log}")));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Stops the process in its tracks (SIGSTOP).
    ///
    /// # Errors
    /// When it is down.
    pub fn pause(&mut self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        self.paused = true;
        Ok(())
    }

    /// Lets a paused process go on (SIGCONT).
    ///
    /// # Errors
    /// When it is down.
    pub fn resume(&mut self) -> Result<()> {
        self.signal(Signal::SIGCONT)?;
        self.paused = false;
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().and_then(|pid| i32::try_from(pid).ok());
        let down = || Failure::failed(format!("member {} is down", self.id));
        kill(Pid::from_raw(pid.ok_or_else(down)?), signal).during(format_args!("send {signal}"))
    }

    /// How the process ended, if it just turned out that it has.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let status = child.try_wait().during("ask for the exit status")?;
        if status.is_some() {
            self.child = None;
            self.paused = false;
        }
        Ok(status)
    }

    /// Whether the process was started and has not ended, known or not.
    /// Unlike [`ended`](Self::ended) it leaves the end for others to see.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn is_up(&self) -> Result<bool> {
        let Some(pid) = self.pid().and_then(|pid| i32::try_from(pid).ok()) else {
            return Ok(false);
        };
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let status = waitid(Id::Pid(Pid::from_raw(pid)), flags).during("look at a process")?;
        Ok(status == WaitStatus::StillAlive)
    }

    /// What the present or last run wrote to stderr.
    pub fn log(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(&self.log_path)
            && file.seek(SeekFrom::Start(self.log_start)).is_ok()
        {
            // What cannot be read is not shown.
            let _ = file.read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The end of that, for messages.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// The file of all runs' logs.
    pub fn log_path(&self) -> &Path {
        &self.log_path
    }

    /// Deletes the member's data, as a lost disk does.
    ///
    /// # Errors
    /// When the process runs, or the system refuses.
    pub fn wipe(&mut self) -> Result<()> {
        if self.child.is_some() {
            return Err(Failure::failed(format!("member {} runs", self.id)));
        }
        if self.data().exists() {
            fs::remove_dir_all(self.data()).during("remove a member's data")?;
        }
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
    }
}
