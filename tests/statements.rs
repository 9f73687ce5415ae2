//! The semantics of etcd v3, statement by statement, through the real gRPC
//! port of any server.
//!
//! `ETCD_ENDPOINT` (a URL) names a running server, `ETCD_ENDPOINTS` (URLs with
//! commas) the members of a running cluster. Without them the suite starts the
//! servers that it needs. `ETCD_IS=etcd-3.6` says that the server is etcd of
//! that release, whose known deviations are then left out. What could not be
//! checked says `SKIPPED` on stderr.

#[path = "statements/client.rs"]
mod client;
#[path = "statements/deviations.rs"]
mod deviations;
#[path = "statements/errors.rs"]
mod errors;
#[path = "process/ports.rs"]
mod ports;
#[path = "statements/requests.rs"]
mod requests;
#[path = "statements/server.rs"]
mod server;
#[path = "statements/watching.rs"]
mod watching;
#[path = "statements/wire.rs"]
mod wire;

#[path = "statements/bad_input.rs"]
mod bad_input;
#[path = "statements/cluster.rs"]
mod cluster;
#[path = "statements/compaction.rs"]
mod compaction;
#[path = "statements/election.rs"]
mod election;
#[path = "statements/gateway.rs"]
mod gateway;
#[path = "statements/leases.rs"]
mod leases;
#[path = "statements/lock.rs"]
mod lock;
#[path = "statements/maintenance.rs"]
mod maintenance;
#[path = "statements/quorum.rs"]
mod quorum;
#[path = "statements/ranges.rs"]
mod ranges;
#[path = "statements/revisions.rs"]
mod revisions;
#[path = "statements/txns.rs"]
mod txns;
#[path = "statements/watch_history.rs"]
mod watch_history;
#[path = "statements/watches.rs"]
mod watches;
