//! One process of the built binary.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{DEADLINE, Endpoint, POLL, STOP_LIMIT, eventually, free_port};

/// Lines of a log that a failure shows.
const TAIL_LINES: usize = 60;

/// A member: its flags, its data directory, and its process while it runs.
/// Dropping it kills the process.
pub struct Node {
    /// The member's id.
    pub id: u64,
    /// The port of its peer URL.
    pub peer_port: u16,
    client_port: u16,
    flags: BTreeMap<String, Option<String>>,
    open_files: Option<u64>,
    dir: PathBuf,
    http: Endpoint,
    child: Option<Child>,
    paused: bool,
    /// Where the present run's log begins in the log file.
    log_start: u64,
}

impl Node {
    /// A node that is not started, with free ports and its data below `dir`,
    /// as the only member of its cluster.
    pub fn new(id: u64, dir: &Path) -> Self {
        let (peer_port, client_port) = (free_port(), free_port());
        let mut node = Self {
            id,
            peer_port,
            client_port,
            flags: BTreeMap::new(),
            open_files: None,
            dir: dir.to_owned(),
            http: Endpoint::new(id, client_port),
            child: None,
            paused: false,
            log_start: 0,
        };
        node.set("--id", id.to_string());
        node.set("--port", client_port.to_string());
        node.set("--cluster", format!("{id}={}", node.peer_url()));
        node.set("--data-dir", dir.join("data").display().to_string());
        node.set("--heartbeat-interval", "50ms");
        node.set("--election-timeout", "500ms");
        node
    }

    /// Sets an option for the next start.
    pub fn set(&mut self, option: &str, value: impl Into<String>) {
        self.flags.insert(option.to_owned(), Some(value.into()));
    }

    /// Limits the open files of the process from its next start on.
    pub fn limit_open_files(&mut self, files: u64) {
        self.open_files = Some(files);
    }

    /// Sets or clears `--join` for the next start.
    pub fn set_join(&mut self, join: bool) {
        if join {
            self.flags.insert("--join".to_owned(), None);
        } else {
            self.flags.remove("--join");
        }
    }

    /// The peer URL.
    pub fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer_port)
    }

    /// The client port's number.
    pub fn client_port(&self) -> u16 {
        self.client_port
    }

    /// The client port.
    pub fn http(&self) -> &Endpoint {
        &self.http
    }

    /// The member's own data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data").join(self.id.to_string())
    }

    /// Whether the process was started and neither ended, as far as a test has
    /// noticed, nor is paused.
    pub fn is_live(&self) -> bool {
        self.child.is_some() && !self.paused
    }

    /// Starts the process.
    ///
    /// # Panics
    /// When it runs already.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "node {} runs already", self.id);
        let log = File::options().create(true).append(true).open(self.log_path());
        let log = log.expect("open the node's log file");
        self.log_start = log.metadata().expect("size of the node's log file").len();
        let binary = env!("CARGO_BIN_EXE_metastore");
        let mut command = match self.open_files {
            Some(files) => {
                let mut shell = Command::new("sh");
                let script = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
                shell.arg("-c").arg(script).arg(binary);
                shell
            }
            None => Command::new(binary),
        };
        for (option, value) in &self.flags {
            command.arg(option).args(value);
        }
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("METASTORE_") {
                command.env_remove(name);
            }
        }
        // A relative path, used by mistake, must not leave the temporary directory.
        command.current_dir(&self.dir).env("RUST_BACKTRACE", "1");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("start the built binary"));
        // Pooled connections to the previous process would fail.
        self.http = Endpoint::new(self.id, self.client_port);
    }

    /// Starts the process and waits until it is ready.
    pub async fn start(&mut self) {
        self.spawn();
        self.wait_ready().await;
    }

    /// Waits until `/-/readyz` answers 200.
    ///
    /// # Panics
    /// When the process ends or the deadline passes first.
    pub async fn wait_ready(&mut self) {
        let start = Instant::now();
        while self.http.readyz().await != Some(200) {
            if let Some(status) = self.try_exit() {
                panic!("node {} ended ({status}) unready:\n{}", self.id, self.log_tail());
            }
            let waited = start.elapsed();
            assert!(waited < DEADLINE, "node {} is unready:\n{}", self.id, self.log_tail());
            tokio::time::sleep(POLL).await;
        }
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

    /// Stops the process with SIGTERM, which must take at most [`STOP_LIMIT`]
    /// and end with exit code 0.
    pub async fn stop(&mut self) {
        self.stop_with(Signal::SIGTERM).await;
    }

    /// As [`stop`](Self::stop) with another signal.
    pub async fn stop_with(&mut self, signal: Signal) {
        self.signal(signal);
        let code = self.wait_exit(STOP_LIMIT).await;
        assert_eq!(code, Some(0), "exit code of node {} after {signal}", self.id);
    }

    /// Stops the process in its tracks (SIGSTOP).
    pub fn pause(&mut self) {
        self.signal(Signal::SIGSTOP);
        self.paused = true;
    }

    /// Lets a paused process go on (SIGCONT).
    pub fn resume(&mut self) {
        self.signal(Signal::SIGCONT);
        self.paused = false;
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().unwrap_or_else(|| panic!("node {} is down", self.id));
        let pid = i32::try_from(child.id()).expect("process ids fit into i32");
        kill(Pid::from_raw(pid), signal).expect("signal the node's process");
    }

    fn try_exit(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().expect("ask for the exit status");
        if status.is_some() {
            self.child = None;
        }
        status
    }

    /// Waits until the process ends; its exit code, `None` after a signal.
    ///
    /// # Panics
    /// When it still runs after `limit`.
    pub async fn wait_exit(&mut self, limit: Duration) -> Option<i32> {
        assert!(self.child.is_some(), "node {} is down", self.id);
        let start = Instant::now();
        loop {
            if let Some(status) = self.try_exit() {
                return status.code();
            }
            let waited = start.elapsed();
            assert!(waited < limit, "node {} runs after {limit:?}:\n{}", self.id, self.log_tail());
            tokio::time::sleep(POLL).await;
        }
    }

    /// Whether the process is still there.
    pub fn is_running(&mut self) -> bool {
        self.child.is_some() && self.try_exit().is_none()
    }

    fn log_path(&self) -> PathBuf {
        // By port, because nodes of different clusters may share directory and id.
        self.dir.join(format!("node-{}-{}.log", self.id, self.client_port))
    }

    /// What the present or last run wrote to stderr.
    pub fn log(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(self.log_path()) {
            file.seek(SeekFrom::Start(self.log_start)).expect("seek in the node's log file");
            file.read_to_end(&mut text).expect("read the node's log file");
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// Waits until a line of the present run's log meets the condition.
    pub async fn wait_log_line(&self, what: &str, condition: impl Fn(&str) -> bool) {
        let what = format!("a log line of node {}: {what}", self.id);
        eventually(&what, async || self.log().lines().any(&condition).then_some(())).await;
    }

    /// Waits until the present run's log holds the text.
    pub async fn wait_log(&self, text: &str) {
        self.wait_log_line(text, |line| line.contains(text)).await;
    }

    /// Checks that the last run ended with the one line for people that a
    /// failed start owes them, and returns that line.
    ///
    /// # Panics
    /// When it did not.
    pub fn failure(&self) -> String {
        let log = self.log();
        let is_answer = |line: &&str| line.starts_with("metastore: ");
        let last = log.lines().last().unwrap_or_default().to_owned();
        assert!(is_answer(&last.as_str()), "the last line is no answer:\n{log}");
        assert_eq!(log.lines().filter(is_answer).count(), 1, "more than one answer:\n{log}");
        assert!(last.contains("; "), "the line does not say what to do: {last}");
        assert!(!log.contains("panicked"), "it panicked:\n{log}");
        assert!(!log.to_lowercase().contains("backtrace"), "a backtrace:\n{log}");
        last
    }

    /// Deletes the member's data, as a lost disk does.
    ///
    /// # Panics
    /// When the node runs.
    pub fn wipe(&mut self) {
        assert!(self.child.is_none(), "node {} runs", self.id);
        if self.data().exists() {
            fs::remove_dir_all(self.data()).expect("remove the member's data");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- log of node {} ---\n{}", self.id, self.log_tail());
        }
    }
}
