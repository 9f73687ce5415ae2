//! The state machine's snapshot, and the way of a message between members.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use axum::{
    extract::Request,
    middleware::{self, Next},
};
use futures_util::future::{BoxFuture, FutureExt as _};
use metastore::{
    machine::{StateMachine, command},
    proto::{
        Command, ForwardRequest, ForwardResponse, Founder, FoundingHello, FoundingRecord, Identity,
        JoinRequest, JoinResponse, Member, Members, Put, RequestId, command::Op,
    },
    replica::Event,
    storage::rocks::{Kind, MemoryBudget, RocksEngine},
    transport::{
        Directory, Dismissal, Inbox, Joined, Mailbox, Outboxes, PeerClient, PeerService,
        ServerOptions, Timing, inbox,
        listener::{self, Timeouts},
        server,
    },
};
use parking_lot::Mutex;
use raft::eraftpb::{Entry, Message, MessageType};
use slog::{Discard, Logger, o};
use tempfile::TempDir;
use tokio::{runtime::Handle, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::process::DEADLINE;

fn puts(index: u64, pairs: &[(&[u8], &[u8])]) -> Entry {
    let commands: Vec<Command> = pairs
        .iter()
        .map(|(key, value)| {
            let put = Put {
                key: key.to_vec().into(),
                value: value.to_vec().into(),
                condition: None,
                ..Put::default()
            };
            Command { id: Some(RequestId::default()), op: Some(Op::Put(put)) }
        })
        .collect();
    let data = command::encode_payload(commands).into();
    Entry { index, term: 1, data, ..Entry::default() }
}

#[test]
fn kvstore_snapshot() {
    let dir = tempfile::tempdir().expect("make a temporary directory");
    let open = |name: &str| {
        RocksEngine::open(&dir.path().join(name), Kind::State, &MemoryBudget::default())
            .expect("open a state database")
    };
    let founder = Founder { id: 1, peer_url: "http://127.0.0.1:1".to_owned(), incarnation: 11 };
    let founding = FoundingRecord { founders: vec![founder] };
    let engine = open("state");
    StateMachine::bootstrap(&engine, &founding).expect("a founding");
    let mut original = StateMachine::open(engine).expect("a state machine");
    let binary: &[u8] = b"\xff\0\xfe";
    original
        .apply(&[puts(2, &[(b"foo", b"bar"), (b"empty", b"")]), puts(3, &[(binary, binary)])])
        .expect("entries of the log");
    let hash = original.view().hash().expect("a hash");

    original.engine().checkpoint(&dir.path().join("copy")).expect("a checkpoint");
    original.apply(&[puts(4, &[(b"foo", b"later")])]).expect("an entry of the log");

    let mut copy = StateMachine::open(open("copy")).expect("the copy");
    assert_eq!(copy.view().hash(), Ok(hash));
    assert_eq!((copy.position().index, copy.revision()), (3, 4));
    assert_eq!(copy.members(), original.members());
    for (key, value) in [(b"foo".as_slice(), b"bar".as_slice()), (b"empty", b""), (binary, binary)]
    {
        let record = copy.view().get(key).expect("a read").expect("the key");
        assert_eq!(record.value, value);
    }
    // It goes on from there like the original.
    copy.apply(&[puts(4, &[(b"foo", b"later")])]).expect("an entry of the log");
    assert_eq!(copy.view().hash(), original.view().hash());
}

const CLUSTER_ID: u64 = 5;

/// A member as far as messages are concerned.
struct Peer {
    id: u64,
    directory: Directory,
    inbox: Inbox,
    // A lock because the test shares the peer; held for one event.
    mailbox: Mutex<Mailbox>,
    /// The paths that were asked for on its peer URL.
    asked: Arc<Mutex<BTreeSet<String>>>,
    shutdown: CancellationToken,
    _snapshots: TempDir,
}

struct Service(Joined);

impl PeerService for Service {
    fn joined(&self) -> Option<Joined> {
        Some(self.0.clone())
    }

    fn hello(&self) -> FoundingHello {
        FoundingHello::default()
    }

    fn forward(&self, _: u64, _: ForwardRequest) -> BoxFuture<'_, ForwardResponse> {
        async { ForwardResponse::default() }.boxed()
    }

    fn join(&self, _: JoinRequest) -> BoxFuture<'_, JoinResponse> {
        async { JoinResponse::default() }.boxed()
    }

    fn snapshot_received(&self, _: Message, _: PathBuf) -> BoxFuture<'_, Result<(), String>> {
        async { Err("no snapshot is expected".to_owned()) }.boxed()
    }

    fn dismissed(&self, _: Dismissal) {}
}

impl Peer {
    fn start(id: u64, socket: std::net::TcpListener, members: Members) -> Self {
        let identity = Identity { cluster_id: CLUSTER_ID, member_id: id, incarnation: id };
        let directory = Directory::new(identity, Arc::new(members));
        let (inbox, mailbox) = inbox::channel();
        let peer = Self {
            id,
            directory: directory.clone(),
            inbox: inbox.clone(),
            mailbox: Mutex::new(mailbox),
            asked: Arc::default(),
            shutdown: CancellationToken::new(),
            _snapshots: tempfile::tempdir().expect("make a temporary directory"),
        };
        let options = ServerOptions {
            timing: timing(),
            snapshot_dir: peer._snapshots.path().to_owned(),
            shutdown: peer.shutdown.clone(),
            logger: logger(),
        };
        let asked = Arc::clone(&peer.asked);
        let remember = move |request: Request, next: Next| {
            asked.lock().insert(request.uri().path().to_owned());
            next.run(request)
        };
        let router =
            server::router(Arc::new(Service(Joined { directory, inbox })), client(), options)
                .layer(middleware::from_fn(remember));
        let (timeouts, shutdown) = (Timeouts::default(), peer.shutdown.clone());
        listener::serve(socket, router, 100, timeouts, shutdown, logger()).expect("a listener");
        peer
    }

    fn outboxes(&self) -> Outboxes {
        Outboxes::start(
            self.directory.clone(),
            self.inbox.clone(),
            client(),
            timing(),
            Arc::new(|why| panic!("nobody was dismissed: {why:?}")),
            self.shutdown.clone(),
            logger(),
        )
    }

    /// The next message in this member's inbox.
    fn received(&self) -> Message {
        let mut mailbox = self.mailbox.lock();
        let message = async {
            loop {
                let event = mailbox.recv().await.expect("the peer holds an inbox");
                if let Event::Message(message) = event {
                    return *message;
                }
            }
        };
        let message = async { timeout(DEADLINE, message).await };
        let message = tokio::task::block_in_place(|| Handle::current().block_on(message));
        message.unwrap_or_else(|_| panic!("member {} got no message", self.id))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn timing() -> Timing {
    let heartbeat = std::time::Duration::from_millis(50);
    Timing { heartbeat, election: 10 * heartbeat }
}

fn client() -> PeerClient {
    PeerClient::new(DEADLINE).expect("a client")
}

fn logger() -> Logger {
    Logger::root(Discard, o!())
}

fn message(kind: MessageType, from: u64, to: u64) -> Message {
    let mut message = Message { from, to, term: 3, commit: 9, ..Message::default() };
    message.set_msg_type(kind);
    if kind == MessageType::MsgAppend {
        let entry = Entry { index: 1, term: 3, data: "data".into(), ..Entry::default() };
        message.mut_entries().push(entry);
    }
    message
}

#[tokio::test(flavor = "multi_thread")]
async fn process_messages() {
    let sockets: Vec<_> =
        (0..2).map(|_| listener::bind("127.0.0.1", 0, "--cluster").expect("a free port")).collect();
    let members: Vec<Member> = (1..)
        .zip(&sockets)
        .map(|(id, socket)| {
            let peer_url = format!("http://{}", socket.local_addr().expect("a bound socket"));
            Member { id, peer_url, incarnation: id, ..Member::default() }
        })
        .collect();
    let members = Members { cluster_id: CLUSTER_ID, members, removed_ids: Vec::new() };
    let peers: Vec<Peer> =
        (1..).zip(sockets).map(|(id, socket)| Peer::start(id, socket, members.clone())).collect();
    let outboxes: Vec<Outboxes> = peers.iter().map(Peer::outboxes).collect();

    for (from, to) in [(1, 2), (2, 1)] {
        for kind in [MessageType::MsgHeartbeat, MessageType::MsgAppend] {
            outboxes[from as usize - 1].send(message(kind, from, to));
            assert_eq!(peers[to as usize - 1].received(), message(kind, from, to));
        }
    }
    for peer in &peers {
        let asked = peer.asked.lock().clone();
        let streams = asked.iter().filter(|path| path.starts_with("/raft/stream/")).count();
        assert_eq!(streams, 2, "each kind of message has a stream of its own: {asked:?}");
    }
}
