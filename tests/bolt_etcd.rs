//! Snapshot files between this project and etcd's own tools, both ways.
//!
//! They need `etcd` and `etcdctl` of version 3.4, and one of them `bbolt`;
//! without them they say that they were skipped.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use metastore::storage::bolt::{Reader, Trailer, Writer, trailing_sha256};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const BUCKETS: [&str; 10] = [
    "alarm",
    "auth",
    "authRoles",
    "authUsers",
    "cluster",
    "key",
    "lease",
    "members",
    "members_removed",
    "meta",
];

type Content = BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>;

/// Whether all of `tools` can be started here; says so if not.
fn have(tools: &[&str]) -> bool {
    let missing = tools.iter().find(|tool| {
        let output = Command::new(tool).arg("--help").output();
        output.is_err()
    });
    if let Some(tool) = missing {
        println!("SKIPPED: there is no {tool}");
    }
    missing.is_none()
}

/// Runs a command that must succeed, and gives what it printed.
fn run(command: &mut Command, input: &[u8]) -> String {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{said}");
    text
}

fn etcdctl() -> Command {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3");
    command
}

fn free_url() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// An etcd of one member, killed when dropped.
struct Etcd {
    child: Child,
    client_url: String,
}

impl Etcd {
    fn start(data_dir: &Path, peer_url: &str) -> Self {
        let client_url = free_url();
        let mut command = Command::new("etcd");
        command.arg("--data-dir").arg(data_dir);
        command.args(["--listen-client-urls", &client_url]);
        command.args(["--advertise-client-urls", &client_url]);
        command.args(["--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url]);
        command.args(["--initial-cluster", &format!("default={peer_url}")]);
        let log = fs::File::create(data_dir.with_extension("log")).unwrap();
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let etcd = Self { child, client_url };
        etcd.ctl(&["endpoint", "status"], b"");
        etcd
    }

    /// Runs etcdctl against it, which waits until it is there.
    fn ctl(&self, arguments: &[&str], input: &[u8]) -> String {
        let mut command = etcdctl();
        command.args(["--endpoints", &self.client_url]);
        command.args(["--dial-timeout", "30s", "--command-timeout", "30s"]);
        run(command.args(arguments), input)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let arguments = [arguments, &["-w", "json"]].concat();
        serde_json::from_str(&self.ctl(&arguments, b"")).unwrap()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _gone_already = self.child.wait();
    }
}

fn varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Fields of a protobuf message; those with the value 0 are left out.
fn numbers(bytes: &mut Vec<u8>, fields: &[(u8, u64)]) {
    for (field, number) in fields.iter().filter(|(_, number)| *number != 0) {
        bytes.push(field << 3);
        varint(bytes, *number);
    }
}

fn text(bytes: &mut Vec<u8>, field: u8, text: &[u8]) {
    if !text.is_empty() {
        bytes.push(field << 3 | 2);
        varint(bytes, text.len() as u64);
        bytes.extend_from_slice(text);
    }
}

fn revision(main: u64, sub: u64) -> Vec<u8> {
    [&main.to_be_bytes()[..], b"_", &sub.to_be_bytes()].concat()
}

/// An `mvccpb.KeyValue`.
fn key_value(key: &[u8], [create, modify, version, lease]: [u64; 4], value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    text(&mut bytes, 1, key);
    numbers(&mut bytes, &[(2, create), (3, modify), (4, version)]);
    text(&mut bytes, 5, value);
    numbers(&mut bytes, &[(6, lease)]);
    bytes
}

/// A `leasepb.Lease`.
fn lease(id: u64, ttl: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    numbers(&mut bytes, &[(1, id), (2, ttl)]);
    bytes
}

fn read(path: &Path) -> Content {
    let reader = Reader::open(path).unwrap();
    let names = reader.buckets().unwrap();
    let pairs = |name: &[u8]| reader.iter(name).unwrap().unwrap().map(Result::unwrap);
    names
        .iter()
        .map(|name| (name.to_vec(), pairs(name).map(|(k, v)| (k.to_vec(), v.to_vec())).collect()))
        .collect()
}

/// Writes the buckets that etcd has, with the SHA-256 behind them.
fn write(path: &Path, content: &Content) -> u64 {
    let mut writer = Writer::create(path).unwrap();
    for (name, pairs) in content {
        writer.bucket(name).unwrap();
        for (key, value) in pairs {
            writer.put(key, value).unwrap();
        }
    }
    let (_, len) = writer.finish().unwrap();
    let digest = Sha256::digest(fs::read(path).unwrap());
    fs::OpenOptions::new().append(true).open(path).unwrap().write_all(&digest).unwrap();
    len
}

/// The ten buckets of etcd, with `keys` in one of them.
fn content(keys: BTreeMap<Vec<u8>, Vec<u8>>) -> Content {
    let mut content: Content =
        BUCKETS.iter().map(|name| (name.as_bytes().to_vec(), BTreeMap::new())).collect();
    content.insert(b"key".to_vec(), keys);
    content
}

fn put(content: &mut Content, bucket: &str, key: &[u8], value: &[u8]) {
    content.get_mut(bucket.as_bytes()).unwrap().insert(key.to_vec(), value.to_vec());
}

fn random(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|at| (at * at / 7 + seed * 31 + at) as u8).collect()
}

/// Keys from revision 2 on, with values of many sizes.
fn keys(count: u64) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let size = |n: u64| match n % 1000 {
        0 => 3 << 20,
        1..5 => 9_000 * n as usize % 40_000,
        _ => n as usize % 200,
    };
    let key = |n: u64| format!("key {n:08}").into_bytes();
    let pair = |n: u64| {
        let value = random(size(n), n as usize);
        (revision(n, 0), key_value(&key(n), [n, n, 1, 0], &value))
    };
    (2..2 + count).map(pair).collect()
}

/// CRC-32C over the content, as `etcdctl snapshot status` counts it.
fn hash(content: &Content) -> u32 {
    let mut table = [0_u32; 256];
    for (byte, entry) in (0_u32..).zip(&mut table) {
        *entry = (0..8).fold(byte, |c, _| if c & 1 == 1 { c >> 1 ^ 0x82F6_3B78 } else { c >> 1 });
    }
    let add = |hash: u32, bytes: &[u8]| {
        bytes.iter().fold(hash, |hash, byte| hash >> 8 ^ table[(hash as u8 ^ byte) as usize])
    };
    !content.iter().fold(!0, |hash, (name, pairs)| {
        let pairs = pairs.iter();
        pairs.fold(add(hash, name), |hash, (key, value)| add(add(hash, key), value))
    })
}

#[test]
fn etcdctl_reads_the_content_that_was_written() {
    if !have(&["etcdctl"]) {
        return;
    }
    for count in [1, 50, 3_000, 100_000] {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("snap.db");
        let content = content(keys(count));
        let len = write(&path, &content);
        assert_eq!(trailing_sha256(&path).unwrap(), Trailer::Right);
        let mut command = etcdctl();
        command.args(["snapshot", "status", "-w", "json"]).arg(&path);
        let status: Value = serde_json::from_str(&run(&mut command, b"")).unwrap();
        assert_eq!(status["revision"], count + 1);
        assert_eq!(status["totalKey"], count);
        assert_eq!(status["totalSize"], len);
        assert_eq!(status["hash"], hash(&content));
    }
}

#[test]
fn bbolt_finds_nothing_wrong_with_what_was_written() {
    if !have(&["bbolt"]) {
        return;
    }
    let long = |n: u16| [&n.to_be_bytes()[..], &[b'k'; 32_766]].concat();
    let long_keys: BTreeMap<_, _> = (0..60).map(|n| (long(n), b"1".to_vec())).collect();
    for pairs in [BTreeMap::new(), keys(1), keys(10_000), long_keys] {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("snap.db");
        write(&path, &content(pairs));
        let said = run(Command::new("bbolt").arg("check").arg(&path), b"");
        assert_eq!(said.trim(), "OK");
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("snap.db");
    write(&path, &Content::new());
    assert_eq!(run(Command::new("bbolt").arg("check").arg(&path), b"").trim(), "OK");
}

/// Puts keys into an etcd in all ways, and gives its bucket of keys as it must
/// be then, and the id of a lease.
fn fill(etcd: &Etcd) -> (BTreeMap<Vec<u8>, Vec<u8>>, u64) {
    let mut keys = BTreeMap::new();
    let large = "v".repeat(1 << 20);
    for (main, value) in [(2, "1"), (3, "2"), (4, &large)] {
        etcd.ctl(&["put", "a"], value.as_bytes());
        keys.insert(revision(main, 0), key_value(b"a", [2, main, main - 1, 0], value.as_bytes()));
    }
    let mut commands = String::from("\n");
    for sub in 0..120 {
        commands += &format!("put k{sub:03} {}\n", "x".repeat(sub as usize));
        let (key, value) = (format!("k{sub:03}"), "x".repeat(sub as usize));
        let pair = key_value(key.as_bytes(), [5, 5, 1, 0], value.as_bytes());
        keys.insert(revision(5, sub), pair);
    }
    commands += "\n\n";
    etcd.ctl(&["txn"], commands.replace(" \n", " \"\"\n").as_bytes());
    etcd.ctl(&["del", "k007"], b"");
    let tombstone = [&revision(6, 0)[..], b"t"].concat();
    keys.insert(tombstone, key_value(b"k007", [0; 4], b""));
    let granted = etcd.ctl(&["lease", "grant", "600"], b"");
    let id = granted.split_whitespace().nth(1).unwrap();
    etcd.ctl(&["put", "leased", "yes", "--lease", id], b"");
    let id = u64::from_str_radix(id, 16).unwrap();
    keys.insert(revision(7, 0), key_value(b"leased", [7, 7, 1, id], b"yes"));
    (keys, id)
}

#[test]
fn a_snapshot_of_etcd_is_read_as_it_was_put() {
    if !have(&["etcd", "etcdctl"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let etcd = Etcd::start(&dir.path().join("etcd"), &free_url());
    let (keys, lease_id) = fill(&etcd);
    let path = dir.path().join("snap.db");
    etcd.ctl(&["snapshot", "save", path.to_str().unwrap()], b"");
    drop(etcd);

    assert_eq!(trailing_sha256(&path).unwrap(), Trailer::Right);
    let content = read(&path);
    assert!(content.keys().eq(BUCKETS.map(str::as_bytes)), "{:?}", content.keys());
    assert!(content[&b"key"[..]] == keys, "other keys were read than put");
    let leases = BTreeMap::from([(lease_id.to_be_bytes().to_vec(), lease(lease_id, 600))]);
    assert_eq!(content[&b"lease"[..]], leases);
    assert_eq!(content[&b"cluster"[..]][&b"clusterVersion"[..]], b"3.4.0");
    assert_eq!(content[&b"meta"[..]][&b"consistent_index"[..]].len(), 8);
    assert_eq!(content[&b"members"[..]].len(), 1);

    // What is read can be written again, and is the same to etcdctl.
    let again = dir.path().join("again.db");
    write(&again, &content);
    let status = |path: &PathBuf| -> Value {
        let mut command = etcdctl();
        command.args(["snapshot", "status", "-w", "json"]).arg(path);
        serde_json::from_str(&run(&mut command, b"")).unwrap()
    };
    assert_eq!(status(&again)["hash"], status(&path)["hash"]);
    assert_eq!(status(&again)["revision"], 7);
}

#[test]
fn etcd_runs_from_a_file_that_was_written() {
    if !have(&["etcd", "etcdctl"]) {
        return;
    }
    let mut content = content(keys(2_000));
    let leased = key_value(b"leased", [2_100, 2_100, 1, 77], b"yes");
    put(&mut content, "key", &revision(2_100, 0), &leased);
    let gone = [&revision(2_101, 0)[..], b"t"].concat();
    put(&mut content, "key", &gone, &key_value(b"key 00000002", [0; 4], b""));
    put(&mut content, "lease", &77_u64.to_be_bytes(), &lease(77, 600));
    put(&mut content, "meta", b"finishedCompactRev", &revision(1_500, 0));
    put(&mut content, "meta", b"scheduledCompactRev", &revision(1_500, 0));
    put(&mut content, "cluster", b"clusterVersion", b"3.4.0");
    let dir = TempDir::new().unwrap();
    let (path, data_dir) = (dir.path().join("snap.db"), dir.path().join("etcd"));
    write(&path, &content);

    let peer_url = free_url();
    let mut restore = etcdctl();
    restore.args(["snapshot", "restore"]).arg(&path).arg("--data-dir").arg(&data_dir);
    restore.args(["--initial-advertise-peer-urls", &peer_url]);
    run(restore.args(["--initial-cluster", &format!("default={peer_url}")]), b"");
    let etcd = Etcd::start(&data_dir, &peer_url);

    let all = etcd.json(&["get", "", "--prefix", "--keys-only"]);
    assert_eq!(all["header"]["revision"], 2_101);
    assert_eq!(all["count"], 2_000);
    let large = etcd.ctl(&["get", "key 00001000", "--print-value-only", "--hex"], b"");
    let expected = random(3 << 20, 1000)
        .iter()
        .fold(String::new(), |hex, byte| hex + &format!("\\x{byte:02x}"));
    assert!(large.trim() == expected, "etcd gives another value than was written");
    let one = &etcd.json(&["get", "key 00000777"])["kvs"][0];
    assert_eq!((&one["create_revision"], &one["version"]), (&777.into(), &1.into()));
    let lives = etcd.json(&["lease", "timetolive", "4d", "--keys"]);
    assert_eq!((&lives["granted-ttl"], &lives["keys"][0]), (&600.into(), &"bGVhc2Vk".into()));
    let compacted = etcd.json(&["endpoint", "hashkv"]);
    assert_eq!(compacted[0]["HashKV"]["compact_revision"], 1_500);
    etcd.ctl(&["put", "new", "1"], b"");
    assert_eq!(etcd.json(&["get", "new"])["kvs"][0]["mod_revision"], 2_102);
}
