//! A network of our own: each member and the clients in a namespace, one bridge
//! between them, and packet filters that lose what they are told to.
//!
//! The namespaces have no names. They exist as long as this process holds them
//! or a process is in them, so that nothing of them is left behind, however
//! this process ends. Their addresses exist nowhere else.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs::File,
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Command, Stdio},
    sync::Arc,
    thread,
};

use nix::sched::{CloneFlags, setns, unshare};

use crate::{Failure, Result, process::Place, report::During};

/// The clients, where members have their id.
pub const CLIENTS: u64 = 0;

/// Members' ports are the same everywhere: each has an address.
pub const PEER_PORT: u16 = 2379;

/// See [`PEER_PORT`].
pub const CLIENT_PORT: u16 = 2380;

/// The first port of the proxies that delay, at the clients' address.
const FIRST_PROXY_PORT: u16 = 7000;

/// More members than anybody needs, and few enough for ports and addresses.
const MAX_MEMBERS: u64 = 9;

/// What is wrong with the network. Links are directed, from whom to whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Broken {
    /// Links on which nothing arrives.
    pub cut: BTreeSet<(u64, u64)>,
    /// Links that lose so many of a hundred packets.
    pub lossy: BTreeMap<(u64, u64), u64>,
    /// Links between members whose connections go through a proxy, which
    /// listens at [`proxy_port`].
    pub slow: BTreeSet<(u64, u64)>,
}

impl Broken {
    /// Nothing passes between two of them, in either direction.
    pub fn part(&mut self, one: u64, other: u64) {
        self.cut.extend([(one, other), (other, one)]);
    }

    /// The packet filter of one host. It replaces whatever there was.
    fn rules(&self, host: u64) -> String {
        let (mut input, mut redirect, mut reset) = (String::new(), String::new(), String::new());
        for (from, to) in self.cut.iter().filter(|(_, to)| *to == host) {
            let _ = (to, writeln!(input, "    ip saddr {} drop", address(*from)));
        }
        for ((from, _), percent) in self.lossy.iter().filter(|((_, to), _)| *to == host) {
            let from = address(*from);
            let _ = writeln!(input, "    ip saddr {from} numgen random mod 100 < {percent} drop");
        }
        for (from, to) in self.slow.iter().filter(|(from, _)| *from == host) {
            let peer = format!("ip daddr {} tcp dport {PEER_PORT}", address(*to));
            let proxy = format!("{}:{}", address(CLIENTS), proxy_port(*from, *to));
            let _ = writeln!(redirect, "    {peer} dnat to {proxy}");
            // Connections from before are not redirected: they are made anew.
            let _ = writeln!(reset, "    {peer} reject with tcp reset");
        }
        format!(
            "flush ruleset\ntable ip faults {{\n  \
             chain arriving {{\n    type filter hook input priority 0\n{input}  }}\n  \
             chain redirected {{\n    type nat hook output priority -100\n{redirect}  }}\n  \
             chain refused {{\n    type filter hook output priority 0\n{reset}  }}\n}}\n"
        )
    }
}

/// The address of a member, or of the clients.
pub fn address(host: u64) -> Ipv4Addr {
    let last = if host == CLIENTS { 200 } else { host as u8 };
    Ipv4Addr::new(10, 77, 0, last)
}

/// Where the proxy of a slow link listens, at the clients' address.
pub fn proxy_port(from: u64, to: u64) -> u16 {
    FIRST_PROXY_PORT + (from * 10 + to) as u16
}

/// The namespaces and what connects them.
#[derive(Debug)]
pub struct Network {
    /// The clients', then those of members 1, 2 and so on.
    hosts: Vec<Arc<OwnedFd>>,
    /// Holds the bridge.
    _bridge: OwnedFd,
}

impl Network {
    /// A network of so many members and the clients, in which nothing is wrong.
    ///
    /// # Errors
    /// [`Failure::NotRun`] when this machine has no way to make it.
    pub fn new(members: u64) -> Result<Self> {
        if members == 0 || members > MAX_MEMBERS {
            return Err(Failure::failed(format!("give 1 to {MAX_MEMBERS} members, not {members}")));
        }
        let bridge = namespace()?;
        let hosts: Vec<Arc<OwnedFd>> =
            (0..=members).map(|_| namespace().map(Arc::new)).collect::<Result<_>>()?;
        let mut ports = "link add br0 type bridge\nlink set br0 up\n".to_owned();
        for (host, namespace) in hosts.iter().enumerate() {
            let file = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
            let _ = writeln!(ports, "link add port{host} type veth peer name eth0 netns {file}");
            let _ = writeln!(ports, "link set port{host} master br0 up");
        }
        run_in(&bridge, "ip", &["-batch", "-"], &ports).map_err(missing)?;
        for (host, namespace) in (0..).zip(&hosts) {
            let address = address(host);
            let up = format!("addr add {address}/24 dev eth0\nlink set eth0 up\nlink set lo up\n");
            run_in(namespace, "ip", &["-batch", "-"], &up).map_err(missing)?;
        }
        let network = Self { hosts, _bridge: bridge };
        network.check_filters().map_err(missing)?;
        network.set(&Broken::default())?;
        Ok(network)
    }

    /// Whether every kind of rule is known here, before anything depends on it.
    fn check_filters(&self) -> Result<()> {
        let mut all = Broken { slow: [(1, CLIENTS)].into(), ..Broken::default() };
        all.cut.insert((1, 1));
        all.lossy.insert((1, 1), 1);
        self.set_host(1, &all)
    }

    /// Where a member is started.
    ///
    /// # Errors
    /// When the network has no such member.
    pub fn place(&self, member: u64) -> Result<Place> {
        let namespace = self.host(member)?;
        Ok(Place {
            host: IpAddr::V4(address(member)),
            peer_port: PEER_PORT,
            client_port: CLIENT_PORT,
            namespace: Some(Arc::clone(namespace)),
        })
    }

    /// The namespace of the clients.
    pub fn clients(&self) -> &Arc<OwnedFd> {
        &self.hosts[0]
    }

    fn host(&self, host: u64) -> Result<&Arc<OwnedFd>> {
        let found = usize::try_from(host).ok().and_then(|host| self.hosts.get(host));
        found.ok_or_else(|| Failure::failed(format!("there is no host {host} in the network")))
    }

    /// Makes exactly this wrong with the network.
    ///
    /// # Errors
    /// When the packet filters cannot be set.
    pub fn set(&self, broken: &Broken) -> Result<()> {
        (0..self.hosts.len() as u64).try_for_each(|host| self.set_host(host, broken))
    }

    fn set_host(&self, host: u64, broken: &Broken) -> Result<()> {
        run_in(self.host(host)?, "nft", &["-f", "-"], &broken.rules(host))
    }
}

/// What fails before anything was tried is missing here, unless it is our own
/// mistake.
fn missing(failure: Failure) -> Failure {
    match failure {
        Failure::Failed(why) if !why.contains("syntax error") => Failure::NotRun(why),
        other => other,
    }
}

/// A new network namespace without a name.
fn namespace() -> Result<OwnedFd> {
    // A thread is moved into it and ends; the file keeps it.
    let make = || -> io::Result<OwnedFd> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(File::open("/proc/thread-self/ns/net")?.into())
    };
    let made = thread::spawn(make).join().map_err(|_| Failure::failed("a thread panicked"))?;
    made.map_err(|error| {
        Failure::not_run(format!(
            "network namespaces cannot be made here ({error}); run it as root"
        ))
    })
}

/// Runs a program in a namespace with this input, to its end.
fn run_in(namespace: &OwnedFd, program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let namespace = namespace.as_raw_fd();
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let enter = move || {
        // SAFETY: the namespace is borrowed until the child has ended.
        let namespace = unsafe { std::os::fd::BorrowedFd::borrow_raw(namespace) };
        Ok(setns(namespace, CloneFlags::CLONE_NEWNET)?)
    };
    // SAFETY: between fork and exec only a system call is made.
    unsafe { command.pre_exec(enter) };
    let mut child = command.spawn().during(format_args!("run {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that stops reading says why on its way out.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().during(format_args!("wait for {program}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::failed(format!("{program} failed: {}; it was told:\n{input}", said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_link_drops_where_it_ends_and_only_there() {
        let mut broken = Broken::default();
        broken.cut.insert((1, 2));
        assert!(broken.rules(2).contains("ip saddr 10.77.0.1 drop"));
        for host in [CLIENTS, 1, 3] {
            assert_eq!(broken.rules(host), Broken::default().rules(host));
        }
        broken.part(3, 1);
        assert!(broken.rules(1).contains("ip saddr 10.77.0.3 drop"));
        assert!(broken.rules(3).contains("ip saddr 10.77.0.1 drop"));
    }

    #[test]
    fn loss_and_delay_have_their_rules() {
        let mut broken = Broken::default();
        broken.lossy.insert((CLIENTS, 1), 30);
        broken.slow.insert((2, 3));
        let lossy = broken.rules(1);
        assert!(lossy.contains("ip saddr 10.77.0.200 numgen random mod 100 < 30 drop"), "{lossy}");
        let slow = broken.rules(2);
        assert!(
            slow.contains("ip daddr 10.77.0.3 tcp dport 2379 dnat to 10.77.0.200:7023"),
            "{slow}"
        );
        assert!(slow.contains("ip daddr 10.77.0.3 tcp dport 2379 reject with tcp reset"), "{slow}");
    }
}
