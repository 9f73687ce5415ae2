//! What breaks, and how it is made to.

pub mod damage;
pub mod delay;
pub mod disk;
pub mod network;
pub mod power;
