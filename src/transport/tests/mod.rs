//! Members on loopback, with a service that remembers what it was told.

mod batches;
mod calls;
mod listening;
mod refusals;
mod snapshots;
mod streams;

use std::{net::TcpListener, path::PathBuf, sync::Arc, time::Duration};

use axum::http::StatusCode;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use raft::eraftpb::{Entry, Message, MessageType};
use slog::{Discard, Logger, o};
use tokio::{
    runtime::Handle,
    sync::{Notify, mpsc},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    Directory, Dismissal, Inbox, Joined, Mailbox, Outboxes, PeerClient, PeerService, ServerOptions,
    Timing, inbox,
    listener::{self, Timeouts},
    server,
};
use crate::{
    proto::{
        ForwardRequest, ForwardResponse, FoundingHello, Identity, JoinRequest, JoinResponse,
        LogPosition, Member, Members, Unit, forward_request::Request, forward_response,
    },
    raftlog::{Promises, Witnessed},
    replica::Event,
};

const CLUSTER_ID: u64 = 7;

/// Longer than anything here takes, unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// More connections than any test has, unless it says so.
const PLACES: usize = 128;

const TIMING: Timing =
    Timing { heartbeat: Duration::from_millis(20), election: Duration::from_millis(500) };

fn logger() -> Logger {
    Logger::root(Discard, o!())
}

fn client() -> PeerClient {
    PeerClient::new(PATIENCE).expect("a client")
}

const fn incarnation(id: u64) -> u64 {
    id * 11
}

fn identity(id: u64) -> Identity {
    Identity { cluster_id: CLUSTER_ID, member_id: id, incarnation: incarnation(id) }
}

fn members(of: &[(u64, &str)], removed_ids: &[u64]) -> Arc<Members> {
    let members = of.iter().map(|(id, url)| Member {
        id: *id,
        peer_url: (*url).to_owned(),
        incarnation: incarnation(*id),
        ..Member::default()
    });
    let (members, removed_ids) = (members.collect(), removed_ids.to_vec());
    Arc::new(Members { cluster_id: CLUSTER_ID, members, removed_ids })
}

fn heartbeat(from: u64, to: u64, commit: u64) -> Message {
    let mut message = Message::default();
    message.set_msg_type(MessageType::MsgHeartbeat);
    (message.from, message.to, message.commit) = (from, to, commit);
    message
}

fn append(from: u64, to: u64, index: u64, bytes: usize) -> Message {
    let mut entry = Entry::default();
    entry.set_index(index);
    entry.set_data(vec![index.to_le_bytes()[0]; bytes].into());
    let mut message = heartbeat(from, to, 0);
    message.set_msg_type(MessageType::MsgAppend);
    message.mut_entries().push(entry);
    message
}

/// An answer that tells which command it is for.
fn echo(request: &ForwardRequest) -> ForwardResponse {
    ForwardResponse { result: Some(forward_response::Result::NotLeader(request.timeout_ms)) }
}

/// What a member's node would be.
struct Service {
    joined: Mutex<Option<Joined>>,
    snapshots: mpsc::UnboundedSender<(Message, PathBuf)>,
    refuse_snapshots: Mutex<bool>,
    dismissed: Mutex<Option<Dismissal>>,
    told: Notify,
}

impl PeerService for Service {
    fn joined(&self) -> Option<Joined> {
        self.joined.lock().clone()
    }

    fn hello(&self) -> FoundingHello {
        FoundingHello { member_id: 2, incarnation: incarnation(2), ..FoundingHello::default() }
    }

    fn forward(&self, _from: u64, request: ForwardRequest) -> BoxFuture<'_, ForwardResponse> {
        Box::pin(async move {
            if request.timeout_ms == u64::MAX {
                std::future::pending::<()>().await;
            }
            match request.request {
                Some(Request::Command(_)) => echo(&request),
                _ => ForwardResponse { result: Some(forward_response::Result::Done(Unit {})) },
            }
        })
    }

    fn join(&self, request: JoinRequest) -> BoxFuture<'_, JoinResponse> {
        let members = members(&[(request.member_id, "http://joined")], &[]);
        Box::pin(async move {
            JoinResponse { members: Some(Members::clone(&members)), ..JoinResponse::default() }
        })
    }

    fn snapshot_received(
        &self,
        message: Message,
        dir: PathBuf,
    ) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            if *self.refuse_snapshots.lock() {
                return Err("not now".to_owned());
            }
            self.snapshots.send((message, dir)).map_err(|_| "the test is over".to_owned())
        })
    }

    fn dismissed(&self, why: Dismissal) {
        *self.dismissed.lock() = Some(why);
        self.told.notify_one();
    }
}

/// A member that listens. Dropping it stops everything it started.
struct Node {
    id: u64,
    port: u16,
    url: String,
    directory: Directory,
    inbox: Inbox,
    // A lock because the tests share the node; held for one event.
    mailbox: Mutex<Mailbox>,
    service: Arc<Service>,
    snapshots: mpsc::UnboundedReceiver<(Message, PathBuf)>,
    snapshot_dir: tempfile::TempDir,
    server: Option<(CancellationToken, JoinHandle<()>)>,
    shutdown: CancellationToken,
}

/// A listener on a free port, and its URL.
fn free_port() -> (TcpListener, u16, String) {
    let listener = listener::bind("127.0.0.1", 0, "--port").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    (listener, port, format!("http://127.0.0.1:{port}"))
}

/// Members 1 to `count` that know each other.
fn nodes(count: u64) -> Vec<Node> {
    let ports: Vec<_> = (0..count).map(|_| free_port()).collect();
    let urls: Vec<_> = ports.iter().map(|(_, _, url)| url.clone()).collect();
    let list: Vec<_> = (1..).zip(urls.iter().map(String::as_str)).collect();
    let all = members(&list, &[]);
    (1..).zip(ports).map(|(id, (listener, ..))| Node::start(id, listener, &all)).collect()
}

fn pair() -> (Node, Node) {
    let mut nodes = nodes(2).into_iter();
    let first = nodes.next().expect("two members");
    (first, nodes.next().expect("two members"))
}

impl Node {
    fn start(id: u64, listener: TcpListener, all: &Arc<Members>) -> Self {
        let port = listener.local_addr().expect("bound").port();
        let directory = Directory::new(identity(id), Arc::clone(all));
        let (inbox, mailbox) = inbox::channel();
        let joined = Joined { directory: directory.clone(), inbox: inbox.clone() };
        let (sender, snapshots) = mpsc::unbounded_channel();
        let service = Arc::new(Service {
            joined: Mutex::new(Some(joined)),
            snapshots: sender,
            refuse_snapshots: Mutex::new(false),
            dismissed: Mutex::default(),
            told: Notify::new(),
        });
        let mut node = Self {
            id,
            port,
            url: format!("http://127.0.0.1:{port}"),
            directory,
            inbox,
            mailbox: Mutex::new(mailbox),
            service,
            snapshots,
            snapshot_dir: tempfile::tempdir().expect("a directory"),
            server: None,
            shutdown: CancellationToken::new(),
        };
        node.serve(listener);
        node
    }

    fn serve(&mut self, listener: TcpListener) {
        let shutdown = self.shutdown.child_token();
        let options = ServerOptions {
            timing: TIMING,
            snapshot_dir: self.snapshot_dir.path().to_owned(),
            shutdown: shutdown.clone(),
            logger: logger(),
        };
        let service: Arc<dyn PeerService> = Arc::clone(&self.service) as _;
        let router = server::router(service, client(), options);
        let server = listener::serve(
            listener,
            router,
            PLACES,
            Timeouts::default(),
            shutdown.clone(),
            logger(),
        );
        self.server = Some((shutdown, server.expect("a runtime")));
    }

    /// Stops listening, and waits until every connection has ended.
    async fn stop(&mut self) {
        let (shutdown, server) = self.server.take().expect("it runs");
        shutdown.cancel();
        server.await.expect("no panic");
    }

    /// Listens on the old port again.
    fn restart(&mut self) {
        let listener = listener::bind("127.0.0.1", self.port, "--port").expect("the old port");
        self.serve(listener);
    }

    fn outboxes(&self) -> Outboxes {
        let service = Arc::clone(&self.service);
        Outboxes::start(
            self.directory.clone(),
            self.inbox.clone(),
            client(),
            TIMING,
            Arc::new(move |why| service.dismissed(why)),
            self.shutdown.clone(),
            logger(),
        )
    }

    /// The next event that satisfies `wanted`.
    fn wait_for(&self, wanted: impl Fn(&Event) -> bool) -> Event {
        loop {
            let event = self.event_within(PATIENCE).expect("the event in time");
            if wanted(&event) {
                return event;
            }
        }
    }

    /// The next event, if one comes within `limit`.
    fn event_within(&self, limit: Duration) -> Option<Event> {
        let mut mailbox = self.mailbox.lock();
        let event = async { timeout(limit, mailbox.recv()).await.ok() };
        let event = tokio::task::block_in_place(|| Handle::current().block_on(event))?;
        Some(event.expect("the node holds an inbox"))
    }

    /// The next event, if one waits.
    fn waiting_event(&self) -> Option<Event> {
        self.mailbox.lock().try_recv().ok()
    }

    /// The next message.
    fn message(&self) -> Message {
        match self.wait_for(|event| matches!(event, Event::Message(_))) {
            Event::Message(message) => *message,
            _ => unreachable!("only messages were waited for"),
        }
    }

    /// Whether a message comes within `limit`.
    fn hears_within(&self, limit: Duration) -> bool {
        self.event_within(limit).is_some_and(|event| matches!(event, Event::Message(_)))
    }

    /// A request to this member that claims to come from member `from`.
    fn post(&self, path: &str, from: u64) -> reqwest::RequestBuilder {
        reqwest::Client::new()
            .post(format!("{}{path}", self.url))
            .header("x-metastore-cluster", CLUSTER_ID)
            .header("x-metastore-from", from)
            .header("x-metastore-incarnation", incarnation(from))
            .header("x-metastore-to", self.id)
    }

    /// That the member still takes a stream and hears what comes in it.
    async fn assert_alive(&self, from: u64) {
        let mut frame = bytes::BytesMut::new();
        super::frame::encode(&heartbeat(from, self.id, 99), &mut frame).expect("small");
        let answer = self.post("/raft/stream/messages", from).body(frame.freeze()).send().await;
        // Held until the message is there: hanging up may overtake it.
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(self.message().commit, 99);
        drop(answer);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}
