//! Proof by nonsense: inputs that nobody should send, for everything in
//! metastore that reads bytes.
//!
//! An input is drawn from a seed and its number, so that any of them can be made
//! again. A third or so is noise; the others are made by the rules of what they
//! claim to be, and most of those are then damaged. Whatever comes of one, it is
//! no panic, takes memory in proportion, and does not keep a member from its work.
//!
//! | module | what it is for |
//! |---|---|
//! | [`dice`] | where the choices come from |
//! | [`shape`], [`tree`], [`raft_message`] | what messages look like, and valid ones |
//! | [`mutate`] | what goes wrong with bytes |
//! | [`run`], [`memory`] | reading inputs, and what is found by it |
//! | [`rig`] | a member in memory |
//! | [`decoders`] | what reads bytes within one process |
//! | [`requests`] | whole requests to a member, in a process of its own or in this one |
//! | [`targets`] | all of them by name, and what each must have shown |

pub mod decoders;
pub mod dice;
pub mod memory;
pub mod mutate;
pub mod raft_message;
pub mod requests;
pub mod rig;
pub mod run;
pub mod shape;
pub mod targets;
pub mod tree;
