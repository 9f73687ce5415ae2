//! What breaks, and how it is made to.

pub mod delay;
pub mod network;
