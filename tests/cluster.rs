//! The built binary as real processes: kill -9, SIGSTOP, restart, membership.
//!
//! Every test ends with the same check: all live replicas hold the same state.

mod process;

#[path = "cluster/corruption.rs"]
mod corruption;
#[path = "cluster/durability.rs"]
mod durability;
#[path = "cluster/faults.rs"]
mod faults;
#[path = "cluster/founding.rs"]
mod founding;
#[path = "cluster/identity.rs"]
mod identity;
#[path = "cluster/leadership.rs"]
mod leadership;
#[path = "cluster/load.rs"]
mod load;
#[path = "cluster/membership.rs"]
mod membership;
#[path = "cluster/older_copies.rs"]
mod older_copies;
