//! Calls to peers.
//!
//! Nothing here is ever sent twice: reqwest's own retries are off, and the
//! connection pool below it repeats a request only when no byte of it was
//! written. Streams use HTTP/1.1, so that each has a connection of its own and
//! bulk delays nothing else.

use std::{collections::BTreeSet, error::Error, fmt, sync::Arc, time::Duration};

use axum::http::{HeaderMap, StatusCode};
use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use prost::Message as _;
use reqwest::{Client, RequestBuilder, Response, redirect, retry};
use tokio::{sync::Semaphore, time};

use super::{
    batches::{Batches, Leader},
    headers::{self, CLUSTER},
};
use crate::{
    error::Fatal,
    proto::{
        ForwardRequest, ForwardResponse, FoundingHello, Identity, JoinRequest, JoinResponse,
        Members, forward_request::Request,
    },
    raftlog::Promises,
    version::{BATCHES, Versions},
};

/// How long a peer may take to say what it knows.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);

/// Requests that are passed on alone at once. Each has a connection of its own,
/// and eight followers of a leader must not take all its places for peers.
const MAX_FORWARDS: usize = 96;

/// The same for what concerns leases: writes must not keep a lease from being
/// renewed.
const MAX_LEASE_FORWARDS: usize = 32;

/// How long a request waits for its turn to be passed on.
pub(super) const FORWARD_PATIENCE: Duration = Duration::from_secs(1);

/// How long a peer may take to bind an incarnation, which is a write.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Idle connections are given up well before the peer's listener does, so that
/// a request rarely meets a connection that is just being closed.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest answer to a call: what a transaction may read, and room.
pub(super) const MAX_ANSWER_BYTES: usize = 64 << 20;

/// How much of a refusal's text is kept for the log.
const MAX_REFUSAL_BYTES: usize = 512;

/// Talks to peers. Clones share their connections.
#[derive(Debug, Clone)]
pub struct PeerClient {
    http: Client,
    batches: Batches,
    // A lock because every request has a task; held for one look-up.
    /// The members that take batches, as they said last.
    take_batches: Arc<Mutex<BTreeSet<u64>>>,
    forwards: Arc<Semaphore>,
    lease_forwards: Arc<Semaphore>,
}

/// Why a call brought no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// No connection: surely nothing was sent.
    NotConnected(String),
    /// A member of this very cluster says that this member was removed.
    Removed,
    /// A member of this very cluster knows this one to have had this on disk.
    Outdated(Promises),
    /// The peer refused it.
    Refused {
        /// The HTTP status.
        status: u16,
        /// The cluster the peer belongs to, if it said so.
        cluster_id: Option<u64>,
        /// What the peer wrote.
        why: String,
    },
    /// It was sent, or part of it, and no usable answer came.
    Failed(String),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotConnected(why) => write!(f, "cannot connect: {why}"),
            Self::Removed => f.write_str("this member was removed from the cluster"),
            Self::Outdated(known) => write!(f, "this member is known to have had {known}"),
            Self::Refused { why, .. } if self.is_stranger() => f.write_str(why),
            Self::Refused { status, why, .. } => write!(f, "refused with {status}: {why}"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

impl Error for CallError {}

impl CallError {
    /// Whether the two have no protocol in common: one of them has to be
    /// upgraded first.
    pub fn is_stranger(&self) -> bool {
        matches!(self, Self::Refused { status, .. }
            if *status == StatusCode::UPGRADE_REQUIRED.as_u16())
    }
}

/// Why a forwarded request brought no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForwardError {
    /// Too many others are passed on already; no byte of it left this process.
    Busy,
    /// Provably no byte of it left this process.
    NeverSent(String),
    /// It may have been carried out.
    Unknown(String),
}

impl PeerClient {
    /// A client that gives up connecting after `connect_timeout`; an election
    /// timeout fits.
    ///
    /// # Errors
    /// When the HTTP client cannot be set up.
    pub fn new(connect_timeout: Duration) -> Result<Self, Fatal> {
        let http = Client::builder()
            .no_proxy()
            .redirect(redirect::Policy::none())
            .retry(retry::never())
            .http1_only()
            .tcp_nodelay(true)
            .connect_timeout(connect_timeout)
            .default_headers(headers::said_always())
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .build()
            .map_err(|error| {
                Fatal::new(
                    format!("cannot set up the HTTP client: {}", causes(&error)),
                    "check the limit on open files",
                )
            })?;
        let forwards = Arc::new(Semaphore::new(MAX_FORWARDS));
        let lease_forwards = Arc::new(Semaphore::new(MAX_LEASE_FORWARDS));
        let batches = Batches::new(http.clone());
        Ok(Self { http, batches, take_batches: Arc::default(), forwards, lease_forwards })
    }

    /// What the peer knows of the founding.
    ///
    /// # Errors
    /// When no usable answer came within two seconds.
    pub async fn hello(&self, url: &str) -> Result<FoundingHello, CallError> {
        let request = self.http.get(format!("{url}/raft/founding")).timeout(QUESTION_TIMEOUT);
        answer(request, None).await
    }

    /// Asks the peer to bind this member's incarnation to its id.
    ///
    /// # Errors
    /// When no usable answer came within ten seconds.
    pub async fn join(&self, url: &str, request: &JoinRequest) -> Result<JoinResponse, CallError> {
        let body = request.encode_to_vec();
        let request = self.http.post(format!("{url}/raft/join")).timeout(JOIN_TIMEOUT).body(body);
        answer(request, None).await
    }

    /// The members as the peer `to` has applied them, unless it knows this one
    /// to have had more on disk than these promises.
    ///
    /// # Errors
    /// When no usable answer came within two seconds.
    pub async fn members(
        &self,
        url: &str,
        identity: &Identity,
        promises: &Promises,
        to: u64,
    ) -> Result<Members, CallError> {
        let request = self.http.get(format!("{url}/raft/members")).timeout(QUESTION_TIMEOUT);
        let request = headers::with_promises(headers::identify(request, identity, to), promises);
        answer(request, Some(identity.cluster_id)).await
    }

    /// Passes a request on to the leader `to` and waits for its answer at most
    /// `timeout`, and a little for its turn.
    ///
    /// # Errors
    /// [`ForwardError::Busy`] when that did not come,
    /// [`ForwardError::NeverSent`] only if there was no connection to send it
    /// on; everything else, refusals included, is [`ForwardError::Unknown`].
    pub async fn forward(
        &self,
        url: &str,
        identity: &Identity,
        to: u64,
        request: ForwardRequest,
        timeout: Duration,
    ) -> Result<ForwardResponse, ForwardError> {
        let leader = Leader { id: to, url: url.to_owned(), identity: *identity };
        let is_command = matches!(request.request, Some(Request::Command(_)));
        if is_command && self.take_batches.lock().contains(&to) {
            let told = self.batches.forward(leader, request, timeout).await;
            if matches!(told, Err(ForwardError::NeverSent(_))) {
                // It may come back as an older version, or have done so.
                self.take_batches.lock().remove(&to);
            }
            return told;
        }
        let this = self.clone();
        // Seldom, and large as futures go.
        let call = async move { Box::pin(this.forward_alone(leader, request, timeout)).await };
        if !is_command {
            return call.await;
        }
        // Not by the one who asked, who may have its answer earlier: from the leader's
        // it is learned that the leader takes batches.
        let stopping = |_| Err(ForwardError::Unknown("this node is stopping".to_owned()));
        tokio::spawn(call).await.unwrap_or_else(stopping)
    }

    async fn forward_alone(
        &self,
        leader: Leader,
        request: ForwardRequest,
        timeout: Duration,
    ) -> Result<ForwardResponse, ForwardError> {
        let Leader { id, url, identity } = leader;
        let turns = match request.request {
            Some(Request::KeepAlive(_) | Request::TimeToLive(_)) => &self.lease_forwards,
            _ => &self.forwards,
        };
        let turn = time::timeout(FORWARD_PATIENCE.min(timeout), turns.acquire());
        let Ok(Ok(_turn)) = turn.await else { return Err(ForwardError::Busy) };
        let body = request.encode_to_vec();
        let request = self.http.post(format!("{url}/raft/forward")).timeout(timeout).body(body);
        let request = headers::identify(request, &identity, id);
        let answered = versioned_answer(request, Some(identity.cluster_id)).await;
        let (versions, answer) = answered.map_err(|error| match error {
            CallError::NotConnected(why) => ForwardError::NeverSent(why),
            other => ForwardError::Unknown(other.to_string()),
        })?;
        if versions.newest() >= BATCHES {
            self.take_batches.lock().insert(id);
        }
        Ok(answer)
    }

    /// A request whose body is streamed to the peer `to`.
    pub(super) fn stream(
        &self,
        url: &str,
        path: &str,
        identity: &Identity,
        to: u64,
    ) -> RequestBuilder {
        headers::identify(self.http.post(format!("{url}{path}")), identity, to)
    }
}

/// Sends a request and decodes the answer.
async fn answer<M: prost::Message + Default>(
    request: RequestBuilder,
    own_cluster: Option<u64>,
) -> Result<M, CallError> {
    versioned_answer(request, own_cluster).await.map(|(_, answer)| answer)
}

/// As [`answer`], with what the answering peer speaks.
async fn versioned_answer<M: prost::Message + Default>(
    request: RequestBuilder,
    own_cluster: Option<u64>,
) -> Result<(Versions, M), CallError> {
    let response = request.send().await.map_err(|error| call_error(&error))?;
    let versions = understood(&response)?;
    if response.status() != StatusCode::OK {
        return Err(refusal(response, own_cluster).await);
    }
    let body = read(response, MAX_ANSWER_BYTES).await?;
    let answer = M::decode(body);
    let answer = answer.map_err(|error| CallError::Failed(format!("not an answer: {error}")))?;
    Ok((versions, answer))
}

/// What the answering peer speaks.
///
/// # Errors
/// When it is nothing that is spoken here, whatever it answered.
pub(super) fn understood(response: &Response) -> Result<Versions, CallError> {
    headers::speaks(response.headers()).map_err(|strangers| CallError::Refused {
        status: StatusCode::UPGRADE_REQUIRED.as_u16(),
        cluster_id: None,
        why: strangers.complaint("this member", "the peer"),
    })
}

/// What a refusal says. What ends this member is believed only of the own
/// cluster.
pub(super) async fn refusal(response: Response, own_cluster: Option<u64>) -> CallError {
    let status = response.status();
    let cluster_id = cluster_id(response.headers());
    let is_own = own_cluster.is_some() && cluster_id == own_cluster;
    match status {
        StatusCode::GONE if is_own => return CallError::Removed,
        StatusCode::PRECONDITION_FAILED if is_own => {
            if let Ok(Some(known)) = headers::promises(response.headers()) {
                return CallError::Outdated(known);
            }
        }
        _ => {}
    }
    let text = read(response, MAX_REFUSAL_BYTES).await.unwrap_or_default();
    let why = String::from_utf8_lossy(&text).trim().to_owned();
    CallError::Refused { status: status.as_u16(), cluster_id, why }
}

/// Why a request could not be sent, or its answer not be received.
pub(super) fn call_error(error: &reqwest::Error) -> CallError {
    let why = causes(error);
    if error.is_connect() { CallError::NotConnected(why) } else { CallError::Failed(why) }
}

async fn read(mut response: Response, limit: usize) -> Result<Bytes, CallError> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| call_error(&error))? {
        if body.len() + chunk.len() > limit {
            return Err(CallError::Failed(format!("the answer is longer than {limit} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

fn cluster_id(headers: &HeaderMap) -> Option<u64> {
    headers::number(headers, CLUSTER).ok()
}

/// An error and what is behind it; the outermost alone says little.
fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
