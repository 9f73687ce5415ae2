//! metastore: a replicated key-value store that you can `curl`.

pub mod api;
pub mod config;
pub mod error;
pub mod machine;
pub mod metrics;
pub mod node;
pub mod proto;
pub mod raftlog;
pub mod replica;
pub mod storage;
pub mod transport;
