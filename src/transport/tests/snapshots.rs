//! Snapshot images between members.

use std::{fs, path::Path};

use prost::Message as _;
use protobuf::Message as _;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::{
    proto::{SnapshotFile, SnapshotHeader},
    storage::sums,
    transport::snapshot::{self, Transfer},
};

fn snapshot_message(from: u64, to: u64) -> Message {
    let mut message = heartbeat(from, to, 0);
    message.set_msg_type(MessageType::MsgSnapshot);
    let metadata = message.mut_snapshot().mut_metadata();
    (metadata.index, metadata.term) = (42, 3);
    message
}

const FILES: [(&str, usize); 4] =
    [("000009.sst", 3 << 20), ("000010.sst", (256 << 10) + 1), ("CURRENT", 16), ("EMPTY", 0)];

fn content(name: &str, size: usize) -> Vec<u8> {
    name.bytes().cycle().take(size).collect()
}

fn image() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, size) in FILES {
        fs::write(dir.path().join(name), content(name, size)).expect("writable");
    }
    dir
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).expect("readable").next().is_none()
}

async fn send(from: &Node, to: &Node, dir: &Path) -> Result<(), String> {
    let transfer = Transfer {
        url: to.url.clone(),
        identity: identity(from.id),
        message: snapshot_message(from.id, to.id),
        dir: dir.to_owned(),
    };
    snapshot::send(&client(), transfer).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_arrives_whole_with_its_message() {
    let (one, mut two) = pair();
    let image = image();
    let leftover = two.snapshot_dir.path().join("recv-42-3-1");
    fs::create_dir(&leftover).expect("writable");
    fs::write(leftover.join("CURRENT"), b"of an earlier attempt").expect("writable");

    send(&one, &two, image.path()).await.expect("confirmed");
    let (message, dir) = two.snapshots.recv().await.expect("taken over");
    assert_eq!(message, snapshot_message(1, 2));
    assert_eq!(dir, leftover);
    // Beside them is what they hash to, for a start after a crash.
    assert_eq!(fs::read_dir(&dir).expect("readable").count(), FILES.len() + 1);
    for (name, size) in FILES {
        assert_eq!(fs::read(dir.join(name)).expect("there"), content(name, size), "{name}");
    }
    sums::verify_sums(&dir).expect("what was received");
    fs::write(dir.join(FILES[0].0), b"damaged").expect("writable");
    let damage = sums::verify_sums(&dir).expect_err("damage");
    assert!(damage.what.contains(FILES[0].0), "{damage}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_not_taken_over_is_removed() {
    let (one, two) = pair();
    *two.service.refuse_snapshots.lock() = true;
    let failure = send(&one, &two, image().path()).await.expect_err("refused");
    assert!(failure.contains("not now"), "{failure}");
    assert!(is_empty(two.snapshot_dir.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_cannot_store_says_so() {
    let (one, two) = pair();
    fs::remove_dir(two.snapshot_dir.path()).expect("empty");
    let small = tempfile::tempdir().expect("a directory");
    fs::write(small.path().join("CURRENT"), b"x").expect("writable");
    let failure = send(&one, &two, small.path()).await.expect_err("no place");
    assert!(failure.contains("500") && failure.contains("cannot store"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_a_directory_in_it_is_not_sent() {
    let (one, two) = pair();
    let image = image();
    fs::create_dir(image.path().join("sub")).expect("writable");
    let failure = send(&one, &two, image.path()).await.expect_err("not plain");
    assert!(failure.contains("not a plain file"), "{failure}");
    assert!(is_empty(two.snapshot_dir.path()));
}

/// The bytes of a transfer, for the tests to damage.
fn transfer(version: u32, message: &Message, files: &[(&str, &[u8])]) -> Vec<u8> {
    let message = message.write_to_bytes().expect("encodes").into();
    let listed = |(name, content): &(&str, &[u8])| SnapshotFile {
        name: (*name).to_owned(),
        size: content.len() as u64,
    };
    let header = SnapshotHeader { version, message, files: files.iter().map(listed).collect() };
    let header = header.encode_to_vec();
    let mut bytes = u32::try_from(header.len()).expect("small").to_be_bytes().to_vec();
    bytes.extend_from_slice(&header);
    for (_, content) in files {
        bytes.extend_from_slice(content);
        bytes.extend_from_slice(&Sha256::digest(content));
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_and_unsafe_images_are_refused_and_leave_nothing() {
    let (_one, mut two) = pair();
    let good = snapshot_message(1, 2);
    let files: [(&str, &[u8]); 2] = [("A", b"some content"), ("B", b"more")];
    let whole = transfer(1, &good, &files);
    let mut tampered = whole.clone();
    let first_of_b = whole.len() - 32 - 4;
    tampered[first_of_b] ^= 1;
    let mut bad_hash = whole.clone();
    *bad_hash.last_mut().expect("not empty") ^= 1;
    let mut trailing = whole.clone();
    trailing.push(0);
    let mut without_index = good.clone();
    without_index.mut_snapshot().mut_metadata().set_index(0);
    let named = |name| transfer(1, &good, &[(name, b"x")]);

    for (what, body) in [
        ("tampered content", tampered),
        ("tampered hash", bad_hash),
        ("cut within a hash", whole[..whole.len() - 1].to_vec()),
        ("cut within a file", whole[..first_of_b + 1].to_vec()),
        ("nothing", Vec::new()),
        ("trailing bytes", trailing),
        ("another version", transfer(2, &good, &files)),
        ("another sender", transfer(1, &snapshot_message(3, 2), &files)),
        ("another receiver", transfer(1, &snapshot_message(1, 3), &files)),
        ("no snapshot", transfer(1, &heartbeat(1, 2, 1), &files)),
        ("index 0", transfer(1, &without_index, &files)),
        ("no files", transfer(1, &good, &[])),
        ("a file twice", transfer(1, &good, &[("A", b"x"), ("A", b"x")])),
        ("unsorted", transfer(1, &good, &[("B", b"x"), ("A", b"x")])),
        ("a parent", named("../A")),
        ("an absolute path", named("/tmp/A")),
        ("a dot", named("..")),
        ("no name", named("")),
        ("a zero byte", named("A\0")),
    ] {
        let answer = two.post("/raft/snapshot", 1).body(body).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{what}");
        assert!(is_empty(two.snapshot_dir.path()), "{what} left something behind");
        assert!(two.snapshots.try_recv().is_err(), "{what} was taken over");
    }
    let answer = two.post("/raft/snapshot", 1).body(whole).send().await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_breaks_off_leaves_nothing_and_frees_the_way() {
    let (_one, mut two) = pair();
    let whole = transfer(1, &snapshot_message(1, 2), &[("A", &[7; 100_000])]);
    let (chunks, body) = mpsc::unbounded_channel();
    let body = futures_util::stream::unfold(body, |mut body| async move {
        body.recv().await.map(|chunk| (chunk, body))
    });
    let request = two.post("/raft/snapshot", 1).body(reqwest::Body::wrap_stream(body));
    let sending = tokio::spawn(request.send());
    chunks.send(Ok::<_, std::io::Error>(whole[..50_000].to_vec())).expect("sending");
    let received = two.snapshot_dir.path().join("recv-42-3-1").join("A");
    while !received.exists() {
        tokio::task::yield_now().await;
    }

    let second = two.post("/raft/snapshot", 1).body(whole.clone()).send().await;
    assert_eq!(second.expect("an answer").status(), StatusCode::CONFLICT, "one at a time");

    chunks.send(Err(std::io::Error::other("the sender's disk failed"))).expect("sending");
    assert!(sending.await.expect("no panic").is_err(), "the request is broken off");
    while !is_empty(two.snapshot_dir.path()) {
        tokio::task::yield_now().await;
    }
    loop {
        let third = two.post("/raft/snapshot", 1).body(whole.clone()).send().await;
        match third.expect("an answer").status() {
            StatusCode::OK => break,
            status => assert_eq!(status, StatusCode::CONFLICT),
        }
    }
    assert!(two.snapshots.recv().await.is_some());
}
