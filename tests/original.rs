//! The suites of the Go program that this one follows, under its names, and
//! what that program got wrong.
//!
//! Every test of a cluster ends with the same check: all members hold the
//! same state.

mod process;

#[path = "original/cluster.rs"]
mod cluster;
#[path = "original/disk.rs"]
mod disk;
#[path = "original/general.rs"]
mod general;
#[path = "original/installing.rs"]
mod installing;
#[path = "original/members.rs"]
mod members;
#[path = "original/proposing.rs"]
mod proposing;
#[path = "original/recovery.rs"]
mod recovery;
#[path = "original/storage.rs"]
mod storage;
#[path = "original/waiters.rs"]
mod waiters;
