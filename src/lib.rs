//! metastore: a replicated key-value store that you can `curl`.
//!
//! This is the tour of the source. One binary keeps keys on several machines,
//! agrees on every write by raft, stores it in RocksDB, and answers HTTP and
//! every etcd v3 client on one port.
//!
//! # The one idea
//!
//! A deterministic core, and threads that only move values. Everything that
//! decides (elections, what is committed, what a request may be told, who is a
//! member, what a write does) is plain data in, plain data out:
//! [`replica::Replica`] takes events and gives effects,
//! [`machine::StateMachine`] takes log entries and gives outcomes. Neither
//! knows a clock, a thread, a socket or chance. [`node`] carries the effects
//! out in production; the simulator in `tests/sim` does it over the same two
//! types, with a network that loses messages and disks that lose what was not
//! synced.
//!
//! # Layers
//!
//! A module uses only what stands to its left; `machine` and `raftlog` never
//! meet. `tests/tidy.rs` enforces it.
//!
//! ```text
//! error, config, proto <- storage <- machine | raftlog <- replica | watch | lease | check <- transport <- node <- api <- run | snapshot <- cli, main
//! ```
//!
//! | module | what it is for |
//! |---|---|
//! | [`error`] | [`Fatal`](error::Fatal) stops the process, [`Rejected`](error::Rejected) is an answer |
//! | [`config`], [`cli`] | flags and environment, checked once |
//! | [`version`] | versions of what is stored and said, and how they meet |
//! | [`mutants`] | bugs to order, which the tests must find; in no shipped binary |
//! | [`storage`] | ordered databases with atomic batches: RocksDB, and one in memory that can crash |
//! | [`machine`] | the replicated state: keys with their revisions and leases, and the members |
//! | [`raftlog`] | the log as raft reads it and as one thread writes it |
//! | [`replica`] | raft, and all decisions around it |
//! | [`watch`] | the hub: who is told of which change, and who is behind |
//! | [`lease`] | the keeper: the leader's clock of every lease |
//! | [`check`] | the leader's comparison of the members' states |
//! | [`transport`] | streams, calls and snapshots between members; the one way to listen |
//! | [`node`] | the threads, the start and the stop, and the [`Handle`](node::Handle) an API sees |
//! | [`api`] | the client port: HTTP for curl, gRPC for etcd's clients, etcd's JSON gateway |
//! | [`run`] | a node and its API as one process |
//! | [`snapshot`] | snapshot files, as the commands save, show and restore them |
//!
//! # How a PUT flows
//!
//! 1. `api::http` parses it and calls [`Handle::submit`](node::Handle::submit),
//!    which registers a waiter under a request id that no other start of any
//!    member ever uses.
//! 2. The raft task takes in everything that waits. On the leader it becomes
//!    *one* log entry, as soon as nothing is under way to its disk; on a
//!    follower the handle forwards the request to the leader, under that id, and
//!    answers once this member has applied it.
//! 3. The entry goes to the followers and to the log thread at the same time.
//!    The log thread writes all that waits as one batch with one fsync. A
//!    follower's answer leaves only after its fsync.
//! 4. Once a majority has it on disk it is committed, which followers hear with
//!    the next append or a moment later. The apply thread writes its effect
//!    together with the applied index as one batch of the state database. The
//!    state before it is seldom looked up there: what was written lately is
//!    remembered.
//! 5. The apply thread answers the waiter, and with it the client: 204.
//!
//! # How a GET flows
//!
//! [`Handle::read`](node::Handle::read) asks the replica, which asks the
//! leader to confirm with a majority that it still leads, and at which index
//! (raft's ReadIndex; one round serves every read that was waiting). Once this
//! member has applied that index, the read is served from its own database.
//! `?consistency=stale` skips the question.
//!
//! # How a watch is fed
//!
//! The apply thread hands each batch of changes to the [`watch`] hub and never
//! waits for it. A watch whose client keeps up is told of it at once, from one
//! encoding for all who watch. One that starts in the past, or whose client is
//! slow, is only a number in memory, the next revision it wants: it is fed
//! pages of the history until it has caught up. A member that has missed
//! changes because it took a snapshot treats all its watches so.
//!
//! # Why a lease never ends early
//!
//! Only the leader counts time, in ticks that stand still when it does. It
//! renews a lease in memory where the next leader would give it its full time
//! anyway, and through the log where that would not be so. It ends a lease by
//! proposing so, naming the term and the renewal it saw: a later renewal, or a
//! later leader, makes the proposal void.
//!
//! # Why two databases
//!
//! The raft database is synced with every batch and small. The state database
//! is never synced by a write, because the log replays it: what a crash leaves
//! is its last flush, data, applied index and members of one moment. So a
//! snapshot is a RocksDB checkpoint of it, hard links only, streamed file by
//! file; and installing one is putting the received directory in place and
//! then one synced batch of the raft database that points at it.
//!
//! The log is shortened only up to what the state database holds durably, and
//! never past a snapshot that is being sent.
//!
//! # Why an older copy of the data is found out
//!
//! A data directory that was put back makes its member's promises a second time,
//! and nothing in it can tell. So every member remembers what the others
//! promised it (term, vote, last entry), and who comes back with less on its
//! disk is refused.
//!
//! # How a member that came apart is found
//!
//! Now and then the leader proposes a mark, a command that changes nothing. An
//! apply batch ends with the entry that holds it, so that every member freezes
//! its state at the same place of the log, hashes it on a thread of its own and
//! reports the hash to the leader. A member whose hash is not that of a majority
//! of the voters is named by an alarm that goes through the log like a write.
//! From then on it answers no client and does not lead: the threads go on, but
//! [`Handle`](node::Handle) gives its state to nobody.
//!
//! # Why a request can be told so little
//!
//! "Not applied" (503) is a promise that a retry is safe. It is made only when
//! the command was never proposed, or when another leader's entry was applied
//! at its index. Everything else that goes wrong is "unknown" (504).

#[macro_use]
pub mod mutants;

pub mod api;
pub mod check;
pub mod cli;
pub mod config;
pub mod error;
pub mod lease;
pub mod logging;
pub mod machine;
pub mod metrics;
pub mod node;
pub mod raftlog;
pub mod replica;
pub mod run;
pub mod snapshot;
pub mod storage;
pub mod transport;
pub mod version;
pub mod watch;

#[doc(hidden)]
pub use transport::fuzzing;

/// The messages of the log, of peers and of etcd's API: a crate of their own,
/// so that thirty thousand generated lines are compiled once.
pub use metastore_proto as proto;
