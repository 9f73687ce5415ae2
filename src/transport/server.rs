//! What the peer listener answers.
//!
//! One gate, `Server::admit`, stands before everything that could reach
//! raft: it lets through only members of this cluster, with the incarnation
//! bound to their id, who mean this member.

use std::{
    collections::HashMap, convert::Infallible, io, path::PathBuf, sync::Arc, time::Duration,
};

use axum::{
    Router,
    body::{self, Body},
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::{self, Next},
    response::{AppendHeaders, IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::{
    StreamExt as _,
    stream::{self, FuturesUnordered},
};
use http_body_util::LengthLimitError;
use parking_lot::Mutex;
use raft::eraftpb::MessageType;
use slog::{Logger, debug, warn};
use tokio::{
    sync::{Semaphore, mpsc},
    time::{self, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use super::{
    Dismissal, Joined, PeerService, Timing, batches,
    client::{CallError, PeerClient},
    directory::{Directory, Verdict},
    frame::{self, FrameReader, MAX_FRAME_BYTES},
    headers::{self, CLUSTER, Caller, promises_header},
    outbox::Kind,
    snapshot,
    throttle::{LOG_INTERVAL, Throttle},
};
use crate::{
    proto::{ForwardBatch, ForwardRequest, JoinRequest},
    raftlog::Promises,
};

/// The largest forwarded request: the largest `--max-request-bytes` and room
/// for what is around the body.
const MAX_FORWARD_BYTES: usize = 20 << 20;

/// The largest body of any other short call.
const MAX_CALL_BYTES: usize = 1 << 20;

/// How long the body of a short call may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Requests to join that are read and answered at once: anybody can send one.
const MAX_JOINS: usize = 16;

/// How often, at most, unknown senders make this member ask its peers who the
/// members are.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// What the peer listener needs beside the service.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The clock of the streams.
    pub timing: Timing,
    /// Where snapshots are received, on the file system of the data; exists.
    pub snapshot_dir: PathBuf,
    /// Ends the streams, which would otherwise hold the listener open.
    pub shutdown: CancellationToken,
    /// Where refusals are logged.
    pub logger: Logger,
}

/// The routes of the peer listener.
pub fn router(service: Arc<dyn PeerService>, client: PeerClient, options: ServerOptions) -> Router {
    let server = Arc::new(Server {
        service,
        client,
        options,
        streams: Mutex::default(),
        receiving: Arc::new(Semaphore::new(1)),
        strangers: Throttle::new(LOG_INTERVAL),
        joining: Semaphore::new(MAX_JOINS),
        refusals: Throttle::new(LOG_INTERVAL),
        malformed: Throttle::new(LOG_INTERVAL),
        refreshes: Throttle::new(REFRESH_INTERVAL),
    });
    Router::new()
        .route(Kind::Messages.path(), post(messages))
        .route(Kind::Appends.path(), post(appends))
        .route(snapshot::PATH, post(receive_snapshot))
        .route("/raft/forward", post(forward))
        .route(batches::PATH, post(forward_batch))
        .route("/raft/join", post(join))
        .route("/raft/founding", get(founding))
        .route("/raft/members", get(members))
        .layer(middleware::from_fn_with_state(Arc::clone(&server), introduce))
        .with_state(server)
}

struct Server {
    service: Arc<dyn PeerService>,
    client: PeerClient,
    options: ServerOptions,
    // A lock because each stream has a task; held for one look-up. A member's
    // newer stream ends its older one, so it holds no more than one of a kind.
    streams: Mutex<HashMap<(u64, Kind), CancellationToken>>,
    receiving: Arc<Semaphore>,
    strangers: Throttle,
    joining: Semaphore,
    refusals: Throttle,
    malformed: Throttle,
    refreshes: Throttle,
}

type Shared = State<Arc<Server>>;

/// An answer that says no.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    why: String,
    /// This member's cluster, for the caller to compare.
    cluster_id: Option<u64>,
    /// What the caller is known to have had on disk.
    known: Option<Promises>,
}

impl Refusal {
    fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into(), cluster_id: None, known: None }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let cluster = self.cluster_id.map(|id| AppendHeaders([(CLUSTER, id.to_string())]));
        let known = self.known.map(|known| AppendHeaders([promises_header(&known)]));
        (self.status, cluster, known, format!("{}\n", self.why)).into_response()
    }
}

/// Before anything else both say which protocols they speak. What this member
/// does not speak it does not try to understand.
async fn introduce(State(server): Shared, request: Request, next: Next) -> Response {
    let mut response = match headers::speaks(request.headers()) {
        Ok(_) => next.run(request).await,
        Err(strangers) => {
            if server.strangers.pass() {
                let from = headers::number(request.headers(), headers::FROM).unwrap_or_default();
                warn!(server.options.logger, "peer request refused: {}",
                    strangers.complaint("this member", "the peer"); "peer" => from);
            }
            let why = strangers.complaint("the peer", "this member");
            Refusal::new(StatusCode::UPGRADE_REQUIRED, why).into_response()
        }
    };
    response.headers_mut().insert(headers::SPEAKS, headers::spoken());
    response
}

async fn messages(State(server): Shared, request: Request) -> Result<Response, Refusal> {
    server.open_stream(Kind::Messages, request)
}

async fn appends(State(server): Shared, request: Request) -> Result<Response, Refusal> {
    server.open_stream(Kind::Appends, request)
}

async fn receive_snapshot(State(server): Shared, request: Request) -> Result<Response, Refusal> {
    let (caller, joined) = server.admit(request.headers())?;
    let Ok(turn) = Arc::clone(&server.receiving).try_acquire_owned() else {
        let why = "another snapshot is being received";
        return Err(Refusal::new(StatusCode::CONFLICT, why));
    };
    let from = caller.from;
    let body = request.into_body().into_data_stream();
    let to = joined.directory.identity().member_id;
    let receiver = Arc::clone(&server);
    // A task of its own, so that a caller that hangs up cannot stop it between
    // a failure and the removal of what was received.
    let receiving = tokio::spawn(async move {
        let _turn = turn;
        let dir = &receiver.options.snapshot_dir;
        let (message, image) = snapshot::receive(body, dir, from, to).await?;
        let taken = receiver.service.snapshot_received(message, image.clone()).await;
        match taken {
            Ok(()) => Ok(()),
            Err(why) => {
                snapshot::discard(image).await;
                Err(snapshot::ReceiveError::Local(io::Error::other(why)))
            }
        }
    });
    let received = receiving
        .await
        .unwrap_or_else(|failure| Err(snapshot::ReceiveError::Local(io::Error::other(failure))));
    received.map(|()| StatusCode::OK.into_response()).map_err(|failure| {
        if server.malformed.pass() {
            warn!(server.options.logger, "snapshot not received";
                "peer" => from, "error" => %failure);
        }
        Refusal::new(failure.status(), failure.to_string())
    })
}

async fn forward(State(server): Shared, request: Request) -> Result<Response, Refusal> {
    let (caller, _) = server.admit(request.headers())?;
    let request: ForwardRequest = decode(request, MAX_FORWARD_BYTES).await?;
    Ok(encode(&server.service.forward(caller.from, request).await))
}

/// Answers each command of a batch as soon as it can.
async fn forward_batch(State(server): Shared, request: Request) -> Result<Response, Refusal> {
    let (Caller { from, .. }, _) = server.admit(request.headers())?;
    let ForwardBatch { requests } = decode(request, MAX_FORWARD_BYTES).await?;
    if requests.len() > batches::MAX_BATCH {
        let why = format!("a batch of more than {} commands", batches::MAX_BATCH);
        return Err(Refusal::new(StatusCode::BAD_REQUEST, why));
    }
    let answers: FuturesUnordered<_> = (0..)
        .zip(requests)
        .map(|(place, request)| {
            let service = Arc::clone(&server.service);
            async move { (place, service.forward(from, request).await) }
        })
        .collect();
    let pieces = answers.ready_chunks(batches::MAX_BATCH).map(batches::encode);
    Ok(Body::from_stream(pieces.map(Ok::<_, Infallible>)).into_response())
}

async fn join(State(server): Shared, request: Request) -> Result<Response, Refusal> {
    let Ok(_turn) = server.joining.try_acquire() else {
        let why = "too many members are joining at once";
        return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why));
    };
    let request: JoinRequest = decode(request, MAX_CALL_BYTES).await?;
    if request.member_id == 0 || request.incarnation == 0 {
        let why = "a member id and an incarnation are required";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, why));
    }
    Ok(encode(&server.service.join(request).await))
}

async fn founding(State(server): Shared) -> Response {
    encode(&server.service.hello())
}

async fn members(State(server): Shared, headers: HeaderMap) -> Result<Response, Refusal> {
    let (_, joined) = server.admit(&headers)?;
    Ok(encode(&*joined.directory.applied()))
}

impl Server {
    /// Lets a request through whose headers prove that it belongs here.
    fn admit(self: &Arc<Self>, headers: &HeaderMap) -> Result<(Caller, Joined), Refusal> {
        let Some(joined) = self.service.joined() else {
            let why = "this member does not belong to a cluster yet";
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why));
        };
        let checked = self.check(headers, &joined.directory);
        checked.map(|caller| (caller, joined.clone())).map_err(|refusal| {
            if self.refusals.pass() {
                warn!(self.options.logger, "peer request refused";
                    "status" => refusal.status.as_u16(), "why" => &refusal.why);
            }
            let cluster_id = Some(joined.directory.identity().cluster_id);
            Refusal { cluster_id, ..refusal }
        })
    }

    fn check(
        self: &Arc<Self>,
        headers: &HeaderMap,
        directory: &Directory,
    ) -> Result<Caller, Refusal> {
        let forbidden = |why| Err(Refusal::new(StatusCode::FORBIDDEN, why));
        let caller =
            Caller::parse(headers).map_err(|why| Refusal::new(StatusCode::BAD_REQUEST, why))?;
        let own = directory.identity();
        if caller.cluster_id != own.cluster_id {
            let (theirs, ours) = (caller.cluster_id, own.cluster_id);
            let why = format!("this is a member of cluster {ours}, not of {theirs}");
            return forbidden(why);
        }
        if caller.to != own.member_id {
            let why = format!("this is member {}, not {}", own.member_id, caller.to);
            return forbidden(why);
        }
        let from = caller.from;
        if from == own.member_id {
            let why = format!("member {from} cannot be its own peer");
            return forbidden(why);
        }
        match directory.check(from, caller.incarnation) {
            Verdict::Known => {}
            Verdict::Unknown => {
                self.refresh(directory);
                return forbidden(format!("member {from} is unknown here"));
            }
            Verdict::Removed => {
                let why = format!("member {from} was removed");
                return Err(Refusal::new(StatusCode::GONE, why));
            }
            Verdict::WrongIncarnation => {
                let why = format!(
                    "member {from} has lost its data: remove it and add it again under a new id"
                );
                return forbidden(why);
            }
        }
        if let Some(present) = &caller.promises
            && let Some(known) = directory.outdated(from, present)
        {
            let why = format!(
                "member {from} comes back with an older copy of its data: it has {present}, and \
                 had {known}"
            );
            let refusal = Refusal::new(StatusCode::PRECONDITION_FAILED, why);
            return Err(Refusal { known: Some(known), ..refusal });
        }
        if let Some(url) = &caller.url {
            directory.claim(from, url);
        }
        Ok(caller)
    }

    /// Asks the known peers who the members are: this member may lag behind
    /// the change that added the sender.
    fn refresh(self: &Arc<Self>, directory: &Directory) {
        if !self.refreshes.pass() {
            return;
        }
        for (id, url) in directory.peers() {
            let (server, directory) = (Arc::clone(self), directory.clone());
            tokio::spawn(async move {
                let (identity, promises) = (directory.identity(), directory.promises());
                match server.client.members(&url, identity, &promises, id).await {
                    Ok(said) => directory.vouch(said),
                    Err(CallError::Removed) => server.service.dismissed(Dismissal::Removed),
                    // The streams to this peer will be told the same.
                    Err(error) => {
                        debug!(server.options.logger, "cannot ask a peer for the members";
                            "peer" => id, "error" => %error);
                    }
                }
            });
        }
    }

    /// Accepts a stream of messages: answers at once, and then with a byte
    /// each heartbeat interval for as long as the stream is read.
    fn open_stream(self: &Arc<Self>, kind: Kind, request: Request) -> Result<Response, Refusal> {
        let (caller, joined) = self.admit(request.headers())?;
        let end = self.options.shutdown.child_token();
        if let Some(older) = self.streams.lock().insert((caller.from, kind), end.clone()) {
            older.cancel();
        }
        let (alive, signs) = mpsc::channel::<()>(1);
        let body = request.into_body().into_data_stream();
        let frames = FrameReader::new(body, MAX_FRAME_BYTES, self.options.timing.silence());
        let server = Arc::clone(self);
        tokio::spawn(async move {
            let from = caller.from;
            let reading = server.read_stream(&caller, &joined, frames, &alive);
            if let Some(Err(error)) = end.run_until_cancelled(reading).await
                && server.malformed.pass()
            {
                warn!(server.options.logger, "stream from a peer ended";
                    "peer" => from, "error" => %error);
            }
            let mut streams = server.streams.lock();
            if !end.is_cancelled() {
                streams.remove(&(from, kind));
            }
        });
        let signs = stream::unfold(signs, |mut signs| async move {
            signs.recv().await.map(|()| (Ok::<_, Infallible>(Bytes::from_static(b".")), signs))
        });
        Ok(Body::from_stream(signs).into_response())
    }

    async fn read_stream(
        &self,
        caller: &Caller,
        joined: &Joined,
        mut frames: FrameReader,
        alive: &mpsc::Sender<()>,
    ) -> io::Result<()> {
        let mut heartbeat = time::interval(self.options.timing.heartbeat);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                frame = frames.next() => match frame? {
                    Some(frame) if frame.is_empty() => {}
                    Some(frame) => deliver(&frame, caller, joined)?,
                    None => return Ok(()),
                },
                _ = heartbeat.tick() => {
                    // When the last one was not even read, another says nothing new.
                    let _full = alive.try_send(());
                }
                () = alive.closed() => return Ok(()),
            }
        }
    }
}

/// Gives a message to raft. What the inbox has no room for is lost, as if the
/// network had lost it. Whether raft can stand the message is checked there.
fn deliver(frame: &[u8], caller: &Caller, joined: &Joined) -> io::Result<()> {
    let message = frame::decode(frame).map_err(invalid)?;
    if message.get_from() != caller.from || message.get_to() != caller.to {
        let (from, to) = (message.get_from(), message.get_to());
        return Err(invalid(format!("a message from {from} to {to} does not belong here")));
    }
    if message.get_msg_type() == MessageType::MsgSnapshot {
        return Err(invalid("a snapshot must come with its image"));
    }
    joined.inbox.message(message);
    Ok(())
}

fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Reads and decodes the body of a short call.
async fn decode<M: prost::Message + Default>(request: Request, limit: usize) -> Result<M, Refusal> {
    let body = time::timeout(BODY_TIMEOUT, body::to_bytes(request.into_body(), limit))
        .await
        .map_err(|_| Refusal::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"))?
        .map_err(|error| {
            let source = std::error::Error::source(&error);
            if source.is_some_and(|source| source.is::<LengthLimitError>()) {
                let why = format!("the body is longer than {limit} bytes");
                return Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, why);
            }
            Refusal::new(StatusCode::BAD_REQUEST, format!("the body broke off: {error}"))
        })?;
    M::decode(body).map_err(|error| {
        Refusal::new(StatusCode::BAD_REQUEST, format!("the body is no such request: {error}"))
    })
}

fn encode(answer: &impl prost::Message) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/x-protobuf")];
    (kind, answer.encode_to_vec()).into_response()
}
