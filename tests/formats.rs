//! What is stored and exchanged keeps its form.
//!
//! `tests/fixtures` has a directory for each set of format versions there ever
//! was: the data directory of a one-node cluster as it was written then, what
//! clients were told of it, and messages byte by byte. Every later version must
//! read them all, and a change of today's form that does not raise a version
//! fails here.

mod process;

#[path = "formats/contents.rs"]
mod contents;
#[path = "formats/data.rs"]
mod data;
#[path = "formats/messages.rs"]
mod messages;
#[path = "formats/refusals.rs"]
mod refusals;
#[path = "formats/samples.rs"]
mod samples;

use std::{
    fs,
    path::{Path, PathBuf},
};

use metastore::{
    machine::command::PAYLOAD_VERSION,
    storage::keys::{RAFT_FORMAT_VERSION, STATE_FORMAT_VERSION},
};

/// The fixtures that today's versions write.
fn present() -> PathBuf {
    root().join(format!(
        "raft-{RAFT_FORMAT_VERSION}.state-{STATE_FORMAT_VERSION}.protocol-{PAYLOAD_VERSION}"
    ))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The fixtures of every version.
fn every_version() -> Vec<PathBuf> {
    let entries = fs::read_dir(root()).expect("the fixtures are there");
    let paths = entries.map(|entry| entry.expect("a readable directory").path());
    let mut versions: Vec<PathBuf> = paths.filter(|path| path.is_dir()).collect();
    versions.sort_unstable();
    assert!(versions.contains(&present()), "no fixtures of today's versions: make fixtures");
    versions
}

/// Writes the fixtures of today's versions: `make fixtures`, after a version
/// was raised. What is there is the past, and stays.
#[tokio::test]
#[ignore = "writes into the source tree"]
async fn write_fixtures() {
    let dir = present();
    assert!(!dir.exists(), "{} exists; raise a version first", dir.display());
    let next = dir.with_extension("next");
    fs::create_dir_all(&next).expect("make the directory");
    data::write(&next).await;
    messages::write(&next).await;
    fs::rename(&next, &dir).expect("put the fixtures in place");
}
