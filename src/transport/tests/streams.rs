//! Streams of messages between members.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time,
};

use super::*;
use crate::{transport::frame, version::PROTOCOL};

#[tokio::test(flavor = "multi_thread")]
async fn messages_travel_both_ways_and_in_order() {
    let (one, two) = pair();
    let (from_one, from_two) = (one.outboxes(), two.outboxes());
    for index in 1..=100 {
        from_one.send(append(1, 2, index, 10_000));
    }
    for index in 1..=100 {
        assert_eq!(two.message(), append(1, 2, index, 10_000));
    }
    from_one.send(heartbeat(1, 2, 5));
    assert_eq!(two.message(), heartbeat(1, 2, 5));
    from_two.send(heartbeat(2, 1, 6));
    assert_eq!(one.message(), heartbeat(2, 1, 6));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_of_many_megabytes_arrives() {
    let (one, two) = pair();
    let outboxes = one.outboxes();
    outboxes.send(append(1, 2, 1, 20 << 20));
    assert_eq!(two.message().get_entries()[0].get_data().len(), 20 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_stream_stays_open() {
    let (one, two) = pair();
    let outboxes = one.outboxes();
    outboxes.send(heartbeat(1, 2, 1));
    outboxes.send(append(1, 2, 1, 1));
    let _both = (two.message(), two.message());
    let says = |event: &Event| matches!(event, Event::Speaks { member: 2, newest } if *newest == PROTOCOL.newest());
    for _stream in 0..2 {
        one.wait_for(says);
    }
    // Time is what is tested: each side must hear the other all the while.
    let idle = TIMING.silence() * 3;
    let lost = one.event_within(idle);
    assert!(lost.is_none(), "{lost:?}");
    outboxes.send(heartbeat(1, 2, 2));
    assert_eq!(two.message().commit, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_comes_back_on_its_port_is_reached_again() {
    let (one, mut two) = pair();
    let outboxes = one.outboxes();
    outboxes.send(heartbeat(1, 2, 1));
    assert_eq!(two.message().commit, 1);
    two.stop().await;
    outboxes.send(heartbeat(1, 2, 2));
    one.wait_for(|event| matches!(event, Event::Unreachable(2)));
    two.restart();
    let start = Instant::now();
    while !two.hears_within(TIMING.heartbeat) {
        assert!(start.elapsed() < PATIENCE, "never reconnected");
        outboxes.send(heartbeat(1, 2, 3));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_to_nobody_is_reported_lost() {
    let (one, _two) = pair();
    one.outboxes().send(heartbeat(1, 9, 1));
    one.wait_for(|event| matches!(event, Event::Unreachable(9)));
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_followed_as_they_come_move_and_go() {
    let (one, two) = pair();
    let (listener, _, url) = free_port();
    let first = members(&[(1, &one.url), (2, &two.url), (3, &url)], &[]);
    let mut three = Node::start(3, listener, &first);
    let outboxes = one.outboxes();
    one.directory.set(first);
    let deliver = |node: &Node, commit| {
        let start = Instant::now();
        loop {
            outboxes.send(heartbeat(1, 3, commit));
            if node.hears_within(TIMING.heartbeat) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "commit {commit} never arrived");
        }
    };
    deliver(&three, 1);

    let (listener, _, new_url) = free_port();
    let moved = members(&[(1, &one.url), (2, &two.url), (3, &new_url)], &[]);
    let elsewhere = Node::start(3, listener, &moved);
    one.directory.set(moved);
    // Until it has heard that it moved, it is where it was.
    deliver(&three, 2);
    three.stop().await;
    deliver(&elsewhere, 3);

    one.directory.set(members(&[(1, &one.url), (2, &two.url)], &[3]));
    let start = Instant::now();
    loop {
        while one.waiting_event().is_some() {}
        outboxes.send(heartbeat(1, 3, 4));
        if matches!(one.waiting_event(), Some(Event::Unreachable(3))) {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "the removed member is still a peer");
        time::sleep(TIMING.heartbeat).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_moved_is_found_by_what_it_says_itself() {
    let (one, two) = pair();
    // Member 2 lags: it knows member 1 at a URL where nobody listens any more.
    let (listener, _, old_url) = free_port();
    drop(listener);
    two.directory.set(members(&[(1, &old_url), (2, &two.url)], &[]));
    let (from_one, from_two) = (one.outboxes(), two.outboxes());
    from_one.send(heartbeat(1, 2, 1));
    assert_eq!(two.message().commit, 1);
    let start = Instant::now();
    while !one.hears_within(TIMING.heartbeat) {
        assert!(start.elapsed() < PATIENCE, "never reached");
        from_two.send(heartbeat(2, 1, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_member_is_looked_up_at_known_peers() {
    let nodes = nodes(3);
    let [one, two, three] = &nodes[..] else { unreachable!("three members") };
    three.directory.set(members(&[(2, &two.url), (3, &three.url)], &[]));
    let outboxes = one.outboxes();
    let start = Instant::now();
    while !three.hears_within(TIMING.heartbeat) {
        assert!(start.elapsed() < PATIENCE, "never believed");
        outboxes.send(heartbeat(1, 3, 1));
    }
    assert_eq!(three.directory.peer_url(1).as_deref(), Some(one.url.as_str()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_member_hears_of_it() {
    let (one, two) = pair();
    two.directory.set(members(&[(2, &two.url)], &[1]));
    let _outboxes = one.outboxes();
    time::timeout(PATIENCE, one.service.told.notified()).await.expect("told in time");
    assert_eq!(*one.service.dismissed.lock(), Some(Dismissal::Removed));
}

/// Term 7, an entry of it, and what is on the disk of an older copy.
fn known_and_present() -> (Promises, Promises) {
    let known = Promises { term: 7, vote: 2, last: LogPosition { index: 41, term: 7 } };
    (known, Promises { term: 6, ..known })
}

/// What a member knows that heard member 1 promise so much.
fn heard_of_one(promises: &Promises) -> Arc<Witnessed> {
    let mut witnessed = Witnessed::default();
    witnessed.learn(1, promises);
    Arc::new(witnessed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_an_older_copy_hears_of_it_and_nothing_it_says_is_heard() {
    let (one, two) = pair();
    let (known, present) = known_and_present();
    two.directory.witness(Promises::default(), heard_of_one(&known));
    one.directory.witness(present, Arc::default());
    let outboxes = one.outboxes();
    outboxes.send(heartbeat(1, 2, 1));
    time::timeout(PATIENCE, one.service.told.notified()).await.expect("told in time");
    let why = Some(Dismissal::Outdated { peer: 2, present, known });
    assert_eq!(*one.service.dismissed.lock(), why);
    assert!(two.waiting_event().is_none(), "nothing reached raft");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_has_what_it_promised_is_let_in_however_often_it_comes() {
    let (one, two) = pair();
    let (known, _) = known_and_present();
    two.directory.witness(Promises::default(), heard_of_one(&known));
    for index in [41, 42] {
        let last = LogPosition { index, term: 7 };
        one.directory.witness(Promises { last, ..known }, Arc::default());
        let outboxes = one.outboxes();
        let start = std::time::Instant::now();
        while !two.hears_within(TIMING.heartbeat) {
            assert!(start.elapsed() < PATIENCE, "never let in");
            outboxes.send(heartbeat(1, 2, 1));
        }
    }
    assert_eq!(*one.service.dismissed.lock(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_cannot_call_a_copy_old() {
    let (one, two) = pair();
    let (known, present) = known_and_present();
    let other = Identity { cluster_id: 8, ..identity(2) };
    let members = Members { cluster_id: 8, ..Members::clone(&two.directory.applied()) };
    let joined =
        Joined { directory: Directory::new(other, Arc::new(members)), inbox: two.inbox.clone() };
    joined.directory.witness(Promises::default(), heard_of_one(&known));
    *two.service.joined.lock() = Some(joined);
    one.directory.witness(present, Arc::default());
    let outboxes = one.outboxes();
    outboxes.send(heartbeat(1, 2, 1));
    one.wait_for(|event| matches!(event, Event::Unreachable(2)));
    assert_eq!(*one.service.dismissed.lock(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_cluster_cannot_remove_a_member() {
    let (one, two) = pair();
    let other = Identity { cluster_id: 8, ..identity(2) };
    let removed = Members { cluster_id: 8, ..Members::clone(&members(&[(2, &two.url)], &[1])) };
    let joined =
        Joined { directory: Directory::new(other, Arc::new(removed)), inbox: two.inbox.clone() };
    *two.service.joined.lock() = Some(joined);
    let outboxes = one.outboxes();
    outboxes.send(heartbeat(1, 2, 1));
    one.wait_for(|event| matches!(event, Event::Unreachable(2)));
    assert!(time::timeout(TIMING.election, one.service.told.notified()).await.is_err());
    assert!(two.waiting_event().is_none(), "nothing reached raft");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_stream_ends_the_older_one() {
    let (_one, two) = pair();
    let (keep_open, body) = mpsc::unbounded_channel::<std::io::Result<bytes::Bytes>>();
    let body = futures_util::stream::unfold(body, |mut body| async move {
        body.recv().await.map(|chunk| (chunk, body))
    });
    let path = "/raft/stream/messages";
    let older = two.post(path, 1).body(reqwest::Body::wrap_stream(body)).send().await;
    let older = older.expect("an answer while the request goes on");
    let newer = two.post(path, 1).body(frame::KEEP_ALIVE).send().await.expect("an answer");
    assert_eq!((older.status(), newer.status()), (StatusCode::OK, StatusCode::OK));
    let _end = time::timeout(TIMING.silence() / 2, older.bytes()).await.expect("ended at once");
    drop(keep_open);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_sender_is_dropped() {
    let (_one, two) = pair();
    let body = futures_util::stream::pending::<std::io::Result<bytes::Bytes>>();
    let request = two.post("/raft/stream/appends", 1).body(reqwest::Body::wrap_stream(body));
    let answer = request.send().await.expect("an answer while the request goes on");
    assert_eq!(answer.status(), StatusCode::OK);
    let _end = time::timeout(PATIENCE, answer.bytes()).await.expect("dropped in time");
}

/// Accepts streams and answers them, but never reads one; with `alive`, it
/// goes on saying that it is there.
async fn deaf_peer(listener: TcpListener, alive: bool, accepted: Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a runtime");
    loop {
        let (mut socket, _) = listener.accept().await.expect("a connection");
        accepted.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let mut head = [0; 64];
            let _some = socket.read(&mut head).await;
            let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            socket.write_all(answer).await.expect("writable");
            while !alive || socket.write_all(b"1\r\n.\r\n").await.is_ok() {
                time::sleep(TIMING.heartbeat).await;
            }
        });
    }
}

fn beside_a_deaf_peer(alive: bool) -> (Node, Arc<AtomicUsize>, JoinHandle<()>) {
    let ((listener, _, url), (deaf, _, deaf_url)) = (free_port(), free_port());
    let one = Node::start(1, listener, &members(&[(1, &url), (2, &deaf_url)], &[]));
    let accepted = Arc::new(AtomicUsize::new(0));
    let peer = tokio::spawn(deaf_peer(deaf, alive, Arc::clone(&accepted)));
    (one, accepted, peer)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_slow_peer_does_not_take_is_dropped_and_reported() {
    let (one, _, peer) = beside_a_deaf_peer(true);
    let outboxes = one.outboxes();
    let one_mebibyte = 1 << 20;
    for index in 0..200 {
        outboxes.send(append(1, 2, index, one_mebibyte));
    }
    one.wait_for(|event| matches!(event, Event::Unreachable(2)));
    peer.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_receiver_is_redialled() {
    let (one, accepted, peer) = beside_a_deaf_peer(false);
    let _outboxes = one.outboxes();
    one.wait_for(|event| matches!(event, Event::Unreachable(2)));
    let start = Instant::now();
    while accepted.load(Ordering::Relaxed) <= 2 {
        assert!(start.elapsed() < PATIENCE, "never redialled");
        time::sleep(TIMING.heartbeat).await;
    }
    peer.abort();
}
