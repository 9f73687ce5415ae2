//! Commands passed on in batches.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::{Router, body::Bytes, routing::post};
use prost::Message as _;
use tokio::task::JoinSet;

use super::*;
use crate::{
    proto::{Command, ForwardBatch},
    transport::{ForwardError, batches},
};

type Told = Result<ForwardResponse, ForwardError>;

/// A command; the test's service never answers one that has for ever.
fn command(timeout_ms: u64) -> ForwardRequest {
    ForwardRequest { request: Some(Request::Command(Command::default())), timeout_ms }
}

const FOR_EVER: u64 = u64::MAX;

async fn pass_on(client: &PeerClient, url: &str, timeout_ms: u64, patience: Duration) -> Told {
    client.forward(url, &identity(1), 2, command(timeout_ms), patience).await
}

/// A client that knows member 2 to take batches.
async fn knowing(url: &str) -> PeerClient {
    let client = client();
    assert_eq!(pass_on(&client, url, 1, PATIENCE).await, Ok(echo(&command(1))));
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn each_command_has_its_answer_as_soon_as_it_is_there() {
    let (_one, two) = pair();
    let client = knowing(&two.url).await;
    let mut waiting = JoinSet::new();
    // Some in each call are never answered, and keep none of the others waiting:
    // neither those of the same call nor those that come after.
    for number in 0..3_000 {
        let (client, url) = (client.clone(), two.url.clone());
        waiting.spawn(async move {
            let (timeout, patience) =
                if number < 3 { (FOR_EVER, 10 * PATIENCE) } else { (number, PATIENCE) };
            (number, pass_on(&client, &url, timeout, patience).await)
        });
    }
    for _ in 3..3_000 {
        let (number, told) = waiting.join_next().await.expect("one more").expect("no panic");
        assert_eq!(told, Ok(echo(&command(number))));
    }
    waiting.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn few_calls_take_many_commands_and_who_waits_too_long_is_told() {
    let (_one, two) = pair();
    let client = knowing(&two.url).await;
    let mut stuck = JoinSet::new();
    let soon = Duration::from_millis(50);
    let start = std::time::Instant::now();
    // Each call that has begun is stuck with the command it took.
    while pass_on(&client, &two.url, 1, soon).await != Err(ForwardError::Busy) {
        assert!(start.elapsed() < PATIENCE, "more and more calls are made");
        let (client, url) = (client.clone(), two.url.clone());
        stuck.spawn(async move { pass_on(&client, &url, FOR_EVER, 10 * PATIENCE).await });
    }
    assert!(stuck.len() >= 4, "calls are made while they may: {}", stuck.len());
    stuck.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_connection_no_command_was_sent() {
    let (_one, two) = pair();
    let client = knowing(&two.url).await;
    let (listener, _, nobody) = free_port();
    drop(listener);
    let told = pass_on(&client, &nobody, 1, PATIENCE).await;
    assert!(matches!(told, Err(ForwardError::NeverSent(_))), "{told:?}");
}

/// A leader made for a test: it answers as the function says, and counts the
/// calls for single commands.
async fn leader(answer: fn(ForwardBatch) -> (StatusCode, Bytes)) -> (String, Arc<AtomicUsize>) {
    let singles = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&singles);
    let single = move |body: Bytes| async move {
        counted.fetch_add(1, Ordering::Relaxed);
        let request = ForwardRequest::decode(body).expect("a request");
        ([("x-metastore-protocol", "1-3")], echo(&request).encode_to_vec())
    };
    let batch = move |body: Bytes| async move {
        let batch = ForwardBatch::decode(body).expect("a batch");
        ([("x-metastore-protocol", "1-3")], answer(batch))
    };
    let router =
        Router::new().route("/raft/forward", post(single)).route(batches::PATH, post(batch));
    let (listener, _, url) = free_port();
    listener.set_nonblocking(true).expect("a socket option");
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, singles)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_answered_is_of_unknown_fate() {
    let (url, _) = leader(|_| (StatusCode::OK, Bytes::new())).await;
    let client = knowing(&url).await;
    let told = pass_on(&client, &url, 1, PATIENCE).await;
    assert!(matches!(told, Err(ForwardError::Unknown(_))), "{told:?}");
    let (url, _) = leader(|_| (StatusCode::OK, Bytes::from_static(&[0, 0, 0, 9, 1]))).await;
    let client = knowing(&url).await;
    let told = pass_on(&client, &url, 1, PATIENCE).await;
    assert!(matches!(told, Err(ForwardError::Unknown(_))), "{told:?}");
    // An answer to a command that was not in the batch.
    let stray = |_| (StatusCode::OK, batches::encode([(7, echo(&command(1)))]));
    let (url, _) = leader(stray).await;
    let client = knowing(&url).await;
    let told = pass_on(&client, &url, 1, PATIENCE).await;
    assert!(matches!(told, Err(ForwardError::Unknown(_))), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_put_back_to_an_older_version_is_called_for_each_command() {
    let (url, singles) = leader(|_| (StatusCode::NOT_FOUND, Bytes::new())).await;
    let client = knowing(&url).await;
    let told = pass_on(&client, &url, 1, PATIENCE).await;
    assert!(matches!(told, Err(ForwardError::NeverSent(_))), "{told:?}");
    assert_eq!(pass_on(&client, &url, 1, PATIENCE).await, Ok(echo(&command(1))));
    assert_eq!(singles.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_may_come_in_any_order() {
    let reversed = |batch: ForwardBatch| {
        let answers = (0..).zip(batch.requests).map(|(place, request)| (place, echo(&request)));
        let answers: Vec<_> = answers.collect();
        (StatusCode::OK, batches::encode(answers.into_iter().rev()))
    };
    let (url, singles) = leader(reversed).await;
    let client = knowing(&url).await;
    let mut waiting = JoinSet::new();
    for number in 2..1_000 {
        let (client, url) = (client.clone(), url.clone());
        waiting.spawn(async move { (number, pass_on(&client, &url, number, PATIENCE).await) });
    }
    while let Some(told) = waiting.join_next().await {
        let (number, told) = told.expect("no panic");
        assert_eq!(told, Ok(echo(&command(number))));
    }
    assert_eq!(singles.load(Ordering::Relaxed), 1, "all others came in batches");
}
