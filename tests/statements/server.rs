//! The servers that the suite runs against: given ones, or its own.
//!
//! Only [`Process`] knows what is started and how.

use std::{
    env,
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Weak},
};

use tempfile::TempDir;
use tokio::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{
    client::{Client, eventually},
    deviations::{self, Feature, Release},
    ports::free_port,
    requests::one,
    wire::{Member, MemberAddRequest, MemberListRequest, MemberPromoteRequest},
};

/// Lines of a log that a failure shows.
const TAIL_LINES: usize = 30;

/// Says on stderr what was not checked. Not by a macro, whose output the test
/// runner would keep to itself.
pub fn skipped(statement: &str, reason: &str) {
    let line = format!("SKIPPED {statement}: {reason}\n");
    // Nothing depends on whether anybody reads it.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// The endpoints that the environment names.
fn given() -> Vec<String> {
    let list = env::var("ETCD_ENDPOINTS").or_else(|_| env::var("ETCD_ENDPOINT"));
    let list = list.unwrap_or_default();
    list.split(',').map(|url| url.trim().to_owned()).filter(|url| !url.is_empty()).collect()
}

/// The release of etcd that the server is, or `None` for the one under test.
async fn release_of(client: &Client) -> Option<Release> {
    let said = env::var("ETCD_IS").ok().map(|kind| kind.trim_start_matches("etcd-").to_owned());
    let version = match said {
        Some(version) => version,
        // The server under test speaks as a later release than these.
        None => Some(client.status().await.version)
            .filter(|version| version.starts_with("3.4.") || version.starts_with("3.5."))?,
    };
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// What a test holds of given servers while it runs.
enum Hold {
    Together { _guard: RwLockReadGuard<'static, ()> },
    Alone { _guard: RwLockWriteGuard<'static, ()> },
}

/// Keeps tests of a given server apart that would disturb each other.
static GIVEN: RwLock<()> = RwLock::const_new(());

/// One server with one member, as one test uses it.
pub struct Server {
    /// A connection of this test's own.
    pub client: Client,
    release: Option<Release>,
    started: Option<Arc<Process>>,
    _hold: Option<Hold>,
}

impl Server {
    /// A server that other tests use at the same time: keys must be the test's
    /// own, and revisions move.
    pub async fn shared() -> Self {
        // Dropped with the last test that uses it; a later one starts another.
        static SHARED: Mutex<Weak<Process>> = Mutex::const_new(Weak::new());
        if let [url, ..] = given().as_slice() {
            let hold = Hold::Together { _guard: GIVEN.read().await };
            return Self::at(url, None, Some(hold)).await;
        }
        let mut shared = SHARED.lock().await;
        if let Some(process) = shared.upgrade() {
            return Self::at(&process.url(), Some(Arc::clone(&process)), None).await;
        }
        let server = Self::start(&[]).await;
        *shared = server.started.as_ref().map_or_else(Weak::new, Arc::downgrade);
        server
    }

    /// A server that no other test uses in the meantime, but that may hold
    /// data.
    pub async fn alone() -> Self {
        if let [url, ..] = given().as_slice() {
            let hold = Hold::Alone { _guard: GIVEN.write().await };
            return Self::at(url, None, Some(hold)).await;
        }
        Self::start(&[]).await
    }

    /// A new and empty server with these options, or `None`, said as skipped,
    /// when servers are given.
    pub async fn fresh(statement: &str, options: &[(&str, &str)]) -> Option<Self> {
        if given().is_empty() {
            return Some(Self::start(options).await);
        }
        skipped(statement, "needs a server of its own, with no data and its own options");
        None
    }

    async fn start(options: &[(&str, &str)]) -> Self {
        let dir = Arc::new(TempDir::with_prefix("statements-").expect("a temporary directory"));
        let mut process = Process::new(1, &dir, options);
        process.found(&[process.founder()]);
        process.spawn();
        process.wait_ready().await;
        Self::at(&process.url(), Some(Arc::new(process)), None).await
    }

    async fn at(url: &str, started: Option<Arc<Process>>, hold: Option<Hold>) -> Self {
        let client = Client::new(url);
        let release = release_of(&client).await;
        Self { client, release, started, _hold: hold }
    }

    /// Whether the server has what some releases of etcd lack.
    pub fn has(&self, feature: Feature) -> bool {
        deviations::has(self.release, feature)
    }
}

/// Several members, with a connection to each.
pub struct Cluster {
    clients: Vec<Client>,
    release: Option<Release>,
    // Empty when the cluster was given.
    processes: Vec<Process>,
    dir: Arc<TempDir>,
    _hold: Option<Hold>,
}

impl Cluster {
    /// Three members, given or new; `None`, said as skipped, when only one is
    /// given. No other test uses them.
    pub async fn of_three(statement: &str) -> Option<Self> {
        let urls = given();
        if urls.is_empty() {
            return Some(Self::start(3).await);
        }
        if urls.len() < 3 {
            skipped(statement, "needs three members: name them in ETCD_ENDPOINTS");
            return None;
        }
        let hold = Hold::Alone { _guard: GIVEN.write().await };
        let clients: Vec<Client> = urls.iter().map(|url| Client::new(url)).collect();
        let release = release_of(&clients[0]).await;
        let dir = Arc::new(TempDir::with_prefix("statements-").expect("a temporary directory"));
        Some(Self { clients, release, processes: Vec::new(), dir, _hold: Some(hold) })
    }

    /// A new cluster that the test may damage; `None`, said as skipped, when
    /// servers are given.
    pub async fn own(statement: &str, size: u64) -> Option<Self> {
        if given().is_empty() {
            return Some(Self::start(size).await);
        }
        skipped(statement, "needs members that it can stop and add");
        None
    }

    async fn start(size: u64) -> Self {
        let dir = Arc::new(TempDir::with_prefix("statements-").expect("a temporary directory"));
        let mut processes: Vec<Process> =
            (1..=size).map(|id| Process::new(id, &dir, &[])).collect();
        let founders: Vec<_> = processes.iter().map(Process::founder).collect();
        for process in &mut processes {
            process.found(&founders);
            process.spawn();
        }
        for process in &mut processes {
            process.wait_ready().await;
        }
        let clients: Vec<Client> =
            processes.iter().map(|process| Client::new(&process.url())).collect();
        let release = release_of(&clients[0]).await;
        Self { clients, release, processes, dir, _hold: None }
    }

    /// A connection to each member.
    pub fn clients(&self) -> &[Client] {
        &self.clients
    }

    /// Whether the servers have what some releases of etcd lack.
    pub fn has(&self, feature: Feature) -> bool {
        deviations::has(self.release, feature)
    }

    /// The index of the member that leads, once all of these agree on it.
    pub async fn leader(&self) -> usize {
        eventually("one leader whom every member follows", async || {
            let mut views = Vec::new();
            for client in &self.clients {
                let status = client.try_status().await.ok()?;
                views.push((status.leader, status.header?.member_id));
            }
            let leader = views.first()?.0;
            let agreed = leader != 0 && views.iter().all(|view| view.0 == leader);
            views.iter().position(|view| agreed && view.1 == leader)
        })
        .await
    }

    /// Kills a member's process.
    pub fn kill(&mut self, index: usize) {
        self.processes[index].kill();
    }

    /// Starts a killed member again, and does not wait for it.
    pub fn restart(&mut self, index: usize) {
        self.processes[index].spawn();
    }

    /// Waits until a member serves linearizable reads.
    pub async fn wait_ready(&mut self, index: usize) {
        self.processes[index].wait_ready().await;
    }

    /// Adds a learner by the API, starts it, and waits until it serves; the
    /// member and a connection to it.
    pub async fn add_learner(&mut self) -> (Member, Client) {
        let id = self.processes.len() as u64 + 1;
        let mut process = Process::new(id, &self.dir, &[]);
        let request = MemberAddRequest { peer_ur_ls: vec![process.peer_url()], is_learner: true };
        let added = self.clients[0].cluster().member_add(request).await;
        let member = added.expect("a learner is added").into_inner().member.expect("the member");
        let mut members: Vec<_> = self.processes.iter().map(Process::founder).collect();
        members.push(process.founder());
        assert_eq!(member.id, id, "the next id that was never used");
        process.join(&members);
        process.spawn();
        let client = Client::new(&process.url());
        self.processes.push(process);
        eventually("a learner that has caught up", async || {
            let request = super::wire::RangeRequest { serializable: true, ..one("s") };
            let here = client.try_range(request).await.ok()?.header?.revision;
            let there = self.clients[0].try_range(one("s")).await.ok()?.header?.revision;
            (here == there).then_some(())
        })
        .await;
        (member, client)
    }

    /// Asks once for a member to become a voter.
    pub async fn promote(&self, id: u64) -> Result<(), tonic::Status> {
        self.clients[0].cluster().member_promote(MemberPromoteRequest { id }).await.map(drop)
    }

    /// The members as the first one lists them.
    pub async fn members(&self) -> Vec<Member> {
        let request = MemberListRequest { linearizable: true };
        let answer = self.clients[0].cluster().member_list(request).await;
        answer.expect("members are listed").into_inner().members
    }
}

/// One process of the server under test. Dropping it kills the process.
struct Process {
    id: u64,
    client_port: u16,
    peer_port: u16,
    options: Vec<String>,
    dir: Arc<TempDir>,
    child: Option<Child>,
}

impl Process {
    /// A process that is not started, with free ports, its data below `dir`,
    /// and the default times of heartbeat and election.
    fn new(id: u64, dir: &Arc<TempDir>, options: &[(&str, &str)]) -> Self {
        let (client_port, peer_port) = (free_port(), free_port());
        let options = options.iter().map(|(option, value)| format!("{option}={value}")).collect();
        Self { id, client_port, peer_port, options, dir: Arc::clone(dir), child: None }
    }

    /// The URL for clients.
    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    /// The URL for members.
    fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer_port)
    }

    /// This member as the others' options name it.
    fn founder(&self) -> String {
        format!("{}={}", self.id, self.peer_url())
    }

    /// Makes it one of the founders of a cluster.
    fn found(&mut self, founders: &[String]) {
        self.options.push(format!("--cluster={}", founders.join(",")));
    }

    /// Makes it a further member, which was added under its id.
    fn join(&mut self, members: &[String]) {
        self.found(members);
        self.options.push("--join".to_owned());
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join(format!("{}.log", self.id))
    }

    /// Starts it, at first or again, and does not wait.
    fn spawn(&mut self) {
        let log = File::options().create(true).append(true).open(self.log_path());
        let log = log.expect("open the log file");
        let mut command = Command::new(env!("CARGO_BIN_EXE_metastore"));
        for (name, _) in env::vars_os() {
            if name.to_string_lossy().starts_with("METASTORE_") {
                command.env_remove(name);
            }
        }
        command
            .arg(format!("--id={}", self.id))
            .arg(format!("--data-dir={}", self.dir.path().join("data").display()))
            .arg(format!("--port={}", self.client_port))
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        self.child = Some(command.spawn().expect("start the server"));
    }

    /// Waits until it serves a linearizable read.
    async fn wait_ready(&mut self) {
        let client = Client::new(&self.url());
        eventually("a server that serves reads", async || {
            let child = self.child.as_mut().expect("the process was started");
            if let Some(status) = child.try_wait().expect("ask for the exit status") {
                panic!("member {} ended ({status}):\n{}", self.id, self.log_tail());
            }
            client.try_range(one("s")).await.ok()
        })
        .await;
    }

    /// Kills it, as `kill -9` does, and reaps it.
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- log of member {} ---\n{}", self.id, self.log_tail());
        }
    }
}
