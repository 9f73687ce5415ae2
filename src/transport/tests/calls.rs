//! Short calls.

use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::{
    proto::forward_request,
    transport::{CallError, ForwardError},
};

/// As long as a request may wait whose turn does not come.
const SOON: Duration = Duration::from_millis(50);

#[tokio::test(flavor = "multi_thread")]
async fn requests_wait_for_their_turn_to_be_passed_on_and_leases_have_their_own() {
    let (_one, two) = pair();
    let (client, own) = (client(), identity(1));
    // The test's service never answers this one.
    let stuck = ForwardRequest { timeout_ms: u64::MAX, ..ForwardRequest::default() };
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..96 {
        let (client, own, url, stuck) = (client.clone(), own, two.url.clone(), stuck.clone());
        waiting.spawn(async move { client.forward(&url, &own, 2, stuck, PATIENCE).await });
    }
    let busy = async || client.forward(&two.url, &own, 2, ForwardRequest::default(), SOON).await;
    let start = std::time::Instant::now();
    while busy().await != Err(ForwardError::Busy) {
        assert!(start.elapsed() < PATIENCE, "the 97th was never refused");
    }
    let renewal = forward_request::Request::KeepAlive(Default::default());
    let renewal = ForwardRequest { request: Some(renewal), timeout_ms: 1_000 };
    let answer = client.forward(&two.url, &own, 2, renewal, PATIENCE).await;
    assert!(answer.is_ok(), "{answer:?}");
    waiting.shutdown().await;
}

async fn forward_to(url: &str, request: ForwardRequest) -> Result<ForwardResponse, ForwardError> {
    client().forward(url, &identity(1), 2, request, TIMING.election).await
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_answered() {
    let (_one, two) = pair();
    let client = client();
    assert_eq!(client.hello(&two.url).await.expect("an answer").member_id, 2);
    let request = JoinRequest { member_id: 5, incarnation: 55 };
    let joined = client.join(&two.url, &request).await.expect("an answer");
    assert_eq!(joined.members.expect("members").members[0].id, 5);
    let known =
        client.members(&two.url, &identity(1), &Promises::default(), 2).await.expect("an answer");
    assert_eq!(known, *two.directory.applied());
    let done = forward_to(&two.url, ForwardRequest::default()).await.expect("an answer");
    assert_eq!(done.result, Some(forward_response::Result::Done(Unit {})));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_member_is_told_in_a_call_too() {
    let (_one, two) = pair();
    two.directory.set(members(&[(2, &two.url)], &[1]));
    let answer = client().members(&two.url, &identity(1), &Promises::default(), 2).await;
    assert_eq!(answer, Err(CallError::Removed));
    let stranger = Identity { cluster_id: 8, ..identity(1) };
    let answer = client().members(&two.url, &stranger, &Promises::default(), 2).await;
    let refused =
        matches!(answer, Err(CallError::Refused { status: 403, cluster_id: Some(CLUSTER_ID), .. }));
    assert!(refused, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_with_an_older_copy_is_told_what_it_had() {
    let (_one, two) = pair();
    let last = LogPosition { index: 41, term: 7 };
    let known = Promises { term: 7, vote: 0, last };
    let mut witnessed = Witnessed::default();
    witnessed.learn(1, &known);
    two.directory.witness(Promises::default(), Arc::new(witnessed));
    let older = Promises { last: LogPosition { index: 40, term: 7 }, ..known };
    let answer = client().members(&two.url, &identity(1), &older, 2).await;
    assert_eq!(answer, Err(CallError::Outdated(known)));
    assert!(client().members(&two.url, &identity(1), &known, 2).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_connection_a_forward_was_never_sent() {
    let (listener, _, url) = free_port();
    drop(listener);
    let answer = forward_to(&url, ForwardRequest::default()).await;
    assert!(matches!(answer, Err(ForwardError::NeverSent(_))), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn once_sent_a_forward_is_of_unknown_fate() {
    let (_one, two) = pair();
    let start = Instant::now();
    let silent = ForwardRequest { timeout_ms: u64::MAX, ..ForwardRequest::default() };
    let answer = forward_to(&two.url, silent).await;
    assert!(matches!(answer, Err(ForwardError::Unknown(_))), "{answer:?}");
    assert!(start.elapsed() >= TIMING.election, "the answer was waited for");

    two.directory.set(members(&[(2, &two.url)], &[1]));
    let refused = forward_to(&two.url, ForwardRequest::default()).await;
    assert!(matches!(refused, Err(ForwardError::Unknown(_))), "{refused:?}");
}

/// Answers each connection's first request and hangs up on its second.
async fn hangs_up(listener: TcpListener, requests: mpsc::UnboundedSender<()>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a runtime");
    loop {
        let (mut socket, _) = listener.accept().await.expect("a connection");
        for answer in ["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", ""] {
            let mut request = [0; 4096];
            if !matches!(socket.read(&mut request).await, Ok(1..)) {
                break;
            }
            requests.send(()).expect("the test listens");
            socket.write_all(answer.as_bytes()).await.expect("writable");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_broke_off_is_not_sent_again() {
    let (listener, _, url) = free_port();
    let (requests, mut counted) = mpsc::unbounded_channel();
    let server = tokio::spawn(hangs_up(listener, requests));
    let client = client();
    let (request, own) = (ForwardRequest::default(), identity(1));
    let first = client.forward(&url, &own, 2, request.clone(), PATIENCE).await;
    assert!(first.is_ok(), "{first:?}");
    // The connection comes back from the pool, which is when a client that
    // retries would do so.
    let second = client.forward(&url, &own, 2, request.clone(), PATIENCE).await;
    assert!(matches!(second, Err(ForwardError::Unknown(_))), "{second:?}");
    server.abort();
    assert!(server.await.is_err_and(|end| end.is_cancelled()));
    let mut received = 0;
    while counted.recv().await.is_some() {
        received += 1;
    }
    assert_eq!(received, 2);
}
