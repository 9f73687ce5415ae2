//! Commands on their way to the leader, many in one call.
//!
//! A call costs both members more than the command in it, and those that arrive
//! together are committed together. So a few calls at a time take whatever waits
//! when they begin, and the leader answers each command as soon as it can, in
//! frames of one answer. A member that is too old for this is called for each
//! command alone.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use axum::body::Body;
use parking_lot::Mutex;
use prost::Message as _;
use reqwest::{Client, Response, StatusCode};
use tokio::{sync::oneshot, time};

use super::{
    client::{
        CallError, FORWARD_PATIENCE, ForwardError, MAX_ANSWER_BYTES, call_error, refusal,
        understood,
    },
    frame::FrameReader,
    headers,
};
use crate::proto::{ForwardAnswer, ForwardBatch, ForwardRequest, ForwardResponse, Identity};

/// Where batches are taken.
pub(super) const PATH: &str = "/raft/forwards";

/// Calls at a time. One more than are needed to keep the leader busy would only
/// make the batches smaller.
const MAX_CALLS: usize = 4;

/// Commands in one call.
pub(super) const MAX_BATCH: usize = 512;

/// Bytes of the commands in one call, unless the first is larger.
const MAX_BATCH_BYTES: usize = 4 << 20;

/// Commands that wait for a call.
const MAX_WAITING: usize = 16_384;

/// The same, by their bytes.
const MAX_WAITING_BYTES: usize = 64 << 20;

/// What is told of a command.
pub(super) type Told = Result<ForwardResponse, ForwardError>;

/// Whom to pass commands on to, and in whose name.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Leader {
    pub id: u64,
    pub url: String,
    pub identity: Identity,
}

/// Passes commands on. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Batches {
    http: Client,
    // A lock because every request has a task; held to enter one or to take a
    // batch out.
    queue: Arc<Mutex<Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    calls: usize,
    next_ticket: u64,
}

/// A command that no call has taken yet.
#[derive(Debug)]
struct Waiting {
    ticket: u64,
    leader: Leader,
    request: ForwardRequest,
    bytes: usize,
    timeout: Duration,
    answer: oneshot::Sender<Told>,
}

impl Queue {
    /// Enters a command, unless too many wait already; how to take it back.
    fn enter(
        &mut self,
        leader: Leader,
        request: ForwardRequest,
        timeout: Duration,
        answer: oneshot::Sender<Told>,
    ) -> Option<u64> {
        let bytes = request.encoded_len();
        if self.waiting.len() >= MAX_WAITING || self.bytes + bytes > MAX_WAITING_BYTES {
            return None;
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.bytes += bytes;
        self.waiting.push_back(Waiting { ticket, leader, request, bytes, timeout, answer });
        Some(ticket)
    }

    /// Takes a command back; false when a call has it.
    fn withdraw(&mut self, ticket: u64) -> bool {
        // In the order of their tickets.
        let found = self.waiting.binary_search_by_key(&ticket, |waiting| waiting.ticket);
        let withdrawn = found.ok().and_then(|place| self.waiting.remove(place));
        self.bytes -= withdrawn.as_ref().map_or(0, |withdrawn| withdrawn.bytes);
        withdrawn.is_some()
    }

    /// What the next call takes: those from the front on that go to the same
    /// leader. Nobody waits any more for what is left out.
    fn take(&mut self) -> Vec<Waiting> {
        let mut batch: Vec<Waiting> = Vec::new();
        let mut bytes = 0;
        while let Some(next) = self.waiting.front() {
            let is_full = bytes + next.bytes > MAX_BATCH_BYTES || batch.len() >= MAX_BATCH;
            if batch.first().is_some_and(|first| is_full || first.leader != next.leader) {
                break;
            }
            let Some(next) = self.waiting.pop_front() else { break };
            self.bytes -= next.bytes;
            if !next.answer.is_closed() {
                bytes += next.bytes;
                batch.push(next);
            }
        }
        batch
    }
}

impl Batches {
    pub(super) fn new(http: Client) -> Self {
        Self { http, queue: Arc::default() }
    }

    /// Passes a command on and waits for its answer at most `timeout`, a part of
    /// it for its turn.
    ///
    /// # Errors
    /// [`ForwardError::Busy`] when its turn did not come,
    /// [`ForwardError::NeverSent`] when it surely did not arrive, and
    /// [`ForwardError::Unknown`] otherwise.
    pub(super) async fn forward(
        &self,
        leader: Leader,
        request: ForwardRequest,
        timeout: Duration,
    ) -> Told {
        let (answer, mut answered) = oneshot::channel();
        let entered = self.queue.lock().enter(leader, request, timeout, answer);
        let Some(ticket) = entered else { return Err(ForwardError::Busy) };
        self.start_call();
        let patience = FORWARD_PATIENCE.min(timeout);
        let told = match time::timeout(patience, &mut answered).await {
            Err(_) if self.queue.lock().withdraw(ticket) => return Err(ForwardError::Busy),
            Err(_) => time::timeout(timeout.saturating_sub(patience), answered).await,
            told => told,
        };
        let unknown = |why: &str| Err(ForwardError::Unknown(why.to_owned()));
        match told {
            Ok(Ok(told)) => told,
            Ok(Err(_)) => unknown("this node is stopping"),
            Err(_) => unknown("the leader did not answer in time"),
        }
    }

    /// Begins a call if one more is allowed. It goes on for as long as anything
    /// waits when it has ended, so that nothing is left behind.
    fn start_call(&self) {
        let Some((batch, mut turn)) = self.take_turn() else { return };
        let this = self.clone();
        // Not by the one who asked, who may give up meanwhile.
        tokio::spawn(async move {
            let mut batch = batch;
            while !batch.is_empty() {
                this.call(batch).await;
                batch = turn.next();
            }
        });
    }

    /// Something to call with, and one of the few turns to do so.
    fn take_turn(&self) -> Option<(Vec<Waiting>, Turn)> {
        let mut queue = self.queue.lock();
        if queue.calls >= MAX_CALLS {
            return None;
        }
        let batch = queue.take();
        if batch.is_empty() {
            return None;
        }
        queue.calls += 1;
        Some((batch, Turn { queue: Arc::clone(&self.queue), ended: false }))
    }

    async fn call(&self, batch: Vec<Waiting>) {
        let Some(leader) = batch.first().map(|first| first.leader.clone()) else { return };
        // The leader keeps to the time of each.
        let timeout = batch.iter().map(|waiting| waiting.timeout).max().unwrap_or_default();
        let mut answers = Vec::with_capacity(batch.len());
        let mut requests = Vec::with_capacity(batch.len());
        for waiting in batch {
            answers.push(Some(waiting.answer));
            requests.push(waiting.request);
        }
        let body = ForwardBatch { requests }.encode_to_vec();
        let request = self.http.post(format!("{}{PATH}", leader.url)).timeout(timeout).body(body);
        let sent = headers::identify(request, &leader.identity, leader.id).send().await;
        let failed = match sent.map_err(|error| call_error(&error)) {
            Ok(response) => take_answers(response, &leader, timeout, &mut answers).await,
            Err(CallError::NotConnected(why)) => ForwardError::NeverSent(why),
            Err(other) => ForwardError::Unknown(other.to_string()),
        };
        for answer in answers.into_iter().flatten() {
            // Whoever gave up does not want to know.
            let _ = answer.send(Err(failed.clone()));
        }
    }
}

/// One of the calls that may be made at a time; given back when dropped, however
/// its task ends.
struct Turn {
    queue: Arc<Mutex<Queue>>,
    ended: bool,
}

impl Turn {
    /// What to call with next. The turn ends when that is nothing, at the same
    /// moment: what comes later finds it free.
    fn next(&mut self) -> Vec<Waiting> {
        let mut queue = self.queue.lock();
        let batch = queue.take();
        if batch.is_empty() {
            self.ended = true;
            queue.calls -= 1;
        }
        batch
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.ended {
            self.queue.lock().calls -= 1;
        }
    }
}

/// Tells each its answer as it comes; what is to be told of those to which none
/// came.
async fn take_answers(
    response: Response,
    leader: &Leader,
    timeout: Duration,
    answers: &mut [Option<oneshot::Sender<Told>>],
) -> ForwardError {
    let unknown = |why: String| ForwardError::Unknown(why);
    match response.status() {
        StatusCode::OK => {}
        // It was put back to a version that knows of no batches.
        StatusCode::NOT_FOUND => {
            return ForwardError::NeverSent("it takes one command at a time".to_owned());
        }
        _ => return unknown(refusal(response, Some(leader.identity.cluster_id)).await.to_string()),
    }
    if let Err(error) = understood(&response) {
        return unknown(error.to_string());
    }
    let body = Body::new(reqwest::Body::from(response)).into_data_stream();
    let mut frames = FrameReader::new(body, MAX_ANSWER_BYTES, timeout);
    // To the end, also when all is told: the connection is used again then.
    loop {
        let frame = match frames.next().await {
            Ok(Some(frame)) => frame.freeze(),
            Ok(None) => return unknown("the leader gave no answer".to_owned()),
            Err(error) => return unknown(format!("the leader's answers broke off: {error}")),
        };
        let answer = match ForwardAnswer::decode(frame) {
            Ok(answer) => answer,
            Err(error) => return unknown(format!("not an answer: {error}")),
        };
        let place = answers.get_mut(answer.place as usize);
        if let (Some(told), Some(response)) = (place.and_then(Option::take), answer.response) {
            // Whoever gave up does not want to know.
            let _ = told.send(Ok(response));
        }
    }
}

/// The answers that are there, as frames.
pub(super) fn encode(answers: impl IntoIterator<Item = (u32, ForwardResponse)>) -> bytes::Bytes {
    use crate::proto::forward_response::Result as Is;

    let mut frames = bytes::BytesMut::new();
    for (place, response) in answers {
        let mut answer = ForwardAnswer { place, response: Some(response) };
        if answer.encoded_len() > MAX_ANSWER_BYTES {
            let why = "it was carried out, but its answer is too large to be passed on";
            let result = Some(Is::Unknown(why.to_owned()));
            answer.response = Some(ForwardResponse { result });
        }
        super::frame::append(&answer, &mut frames);
    }
    frames.freeze()
}

#[cfg(test)]
mod tests {
    use std::iter;

    use super::*;
    use crate::proto::{Command, Put, command::Op, forward_request::Request};

    fn leader(id: u64) -> Leader {
        Leader { id, url: format!("http://{id}"), identity: Identity::default() }
    }

    fn enter(queue: &mut Queue, leader: Leader, bytes: usize) -> (u64, oneshot::Receiver<Told>) {
        let (answer, answered) = oneshot::channel();
        let request = ForwardRequest {
            request: Some(Request::Command(Command::default())),
            timeout_ms: bytes as u64,
        };
        let ticket = queue.enter(leader, request, Duration::ZERO, answer).expect("room");
        (ticket, answered)
    }

    fn tickets(batch: &[Waiting]) -> Vec<u64> {
        batch.iter().map(|waiting| waiting.ticket).collect()
    }

    #[test]
    fn a_batch_is_for_one_leader_and_for_those_who_wait() {
        let mut queue = Queue::default();
        let mut waiting: Vec<_> =
            [1, 1, 1, 2, 1].map(|id| enter(&mut queue, leader(id), 1)).into_iter().collect();
        drop(waiting.remove(1));
        assert_eq!(tickets(&queue.take()), [0, 2]);
        assert_eq!(tickets(&queue.take()), [3]);
        assert_eq!(tickets(&queue.take()), [4]);
        assert!(queue.take().is_empty());
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn what_is_withdrawn_is_not_sent() {
        let mut queue = Queue::default();
        let waiting: Vec<_> =
            iter::repeat_with(|| enter(&mut queue, leader(1), 1)).take(3).collect();
        assert!(queue.withdraw(1));
        assert!(!queue.withdraw(1), "it is gone");
        assert_eq!(tickets(&queue.take()), [0, 2]);
        assert!(!queue.withdraw(0), "a call has it");
        assert_eq!((queue.bytes, waiting.len()), (0, 3));
    }

    #[test]
    fn a_turn_is_free_again_however_it_ends() {
        let batches = Batches::new(Client::new());
        let mut waiting = Vec::new();
        let mut enter = || waiting.push(enter(&mut batches.queue.lock(), leader(1), 1));
        let mut turns = Vec::new();
        for _ in 0..MAX_CALLS {
            enter();
            turns.push(batches.take_turn().expect("a turn").1);
        }
        enter();
        assert!(batches.take_turn().is_none(), "all are taken");
        let mut last = turns.pop().expect("a turn");
        assert_eq!(last.next().len(), 1);
        assert!(last.next().is_empty(), "and so it ends");
        drop(last);
        drop(turns.pop());
        assert_eq!(batches.queue.lock().calls, MAX_CALLS - 2);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut queue = Queue::default();
        let mut full = |bytes: usize| {
            let command = Command {
                id: None,
                op: Some(Op::Put(Put { value: vec![0; bytes].into(), ..Put::default() })),
            };
            let request =
                ForwardRequest { request: Some(Request::Command(command)), timeout_ms: 1 };
            let (answer, _) = oneshot::channel();
            queue.enter(leader(1), request, Duration::ZERO, answer).is_none()
        };
        assert!((0..15).all(|_| !full(4 << 20)));
        assert!(full(4 << 20), "too many bytes");
        assert!((15..MAX_WAITING).all(|_| !full(1)));
        assert!(full(1), "too many commands");
    }

    #[test]
    fn batches_are_bounded() {
        let mut queue = Queue::default();
        let waiting: Vec<_> =
            iter::repeat_with(|| enter(&mut queue, leader(1), 1)).take(MAX_BATCH + 1).collect();
        assert_eq!(queue.take().len(), MAX_BATCH);
        assert_eq!(queue.take().len(), 1);
        drop(waiting);
    }
}
