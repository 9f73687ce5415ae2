//! Clients that others wrote, unchanged, against three nodes.
//!
//! `etcdctl` is found on the path. The Python and the Node client are where
//! the environment variable `METASTORE_TEST_CLIENTS` says, put there by
//! `tests/clients/install.sh`. What is not there is skipped, and said to be.

mod process;

#[path = "clients/crate_client.rs"]
mod crate_client;
#[path = "clients/etcdctl.rs"]
mod etcdctl;

use std::{env, path::PathBuf, process::Command, time::Duration};

use process::Cluster;

/// How long a client may take for all its steps.
const PATIENCE: Duration = Duration::from_secs(120);

/// A command and its arguments, run to its end in a thread of its own.
///
/// # Panics
/// When it cannot be started or does not end in time.
async fn run(mut command: Command) -> std::process::Output {
    let what = format!("{command:?}");
    let running = tokio::task::spawn_blocking(move || command.output());
    let output = tokio::time::timeout(PATIENCE, running).await;
    let output = output.unwrap_or_else(|_| panic!("still running: {what}"));
    output.expect("a thread").unwrap_or_else(|e| panic!("cannot start {what}: {e}"))
}

/// Where the clients are installed, unless they are not.
fn installed(what: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env::var_os("METASTORE_TEST_CLIENTS")?).join(what);
    path.exists().then_some(path)
}

async fn steps(mut command: Command, arguments: Vec<String>) {
    command.args(arguments);
    let output = run(command).await;
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.ends_with("all passed\n"), "{text}{errors}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_client() {
    let (Some(python), Some(script)) = (installed("python/bin/python"), installed("client.py"))
    else {
        return println!("SKIPPED: no Python client; see tests/clients/install.sh");
    };
    let cluster = Cluster::start(3).await;
    let endpoints = (1..=3).map(|id| format!("127.0.0.1:{}", cluster.node(id).client_port()));
    let mut command = Command::new(python);
    command.arg(script);
    steps(command, endpoints.collect()).await;
    cluster.assert_same_state().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_client() {
    let (Some(_), Some(script)) = (installed("node_modules/etcd3"), installed("client.js")) else {
        return println!("SKIPPED: no Node client; see tests/clients/install.sh");
    };
    let cluster = Cluster::start(3).await;
    let endpoints =
        (1..=3).map(|id| format!("http://127.0.0.1:{}", cluster.node(id).client_port()));
    let mut command = Command::new("node");
    command.arg(script);
    steps(command, endpoints.collect()).await;
    cluster.assert_same_state().await;
}
