//! Proof by fault: real `metastore` processes, what breaks them, and the
//! checks of what they promised in the meantime.
//!
//! Everything here treats the program as a black box. It starts the built
//! binary, speaks HTTP and gRPC with it as any client does, and knows nothing
//! of its inside: this crate does not depend on `metastore`, only on the
//! messages of its API.
//!
//! | module | what it is for |
//! |---|---|
//! | [`report`] | figures with targets; a job that did too little has failed |
//! | [`process`] | members as processes, alone or as a group |
//! | [`load`] | clients that record what they asked and were told |
//! | [`history`] | whether one store could have told them so |
//! | [`ledger`], [`floor`] | what clients were told of writes, and what members had promised |
//! | [`finish`] | what is checked when a load ends |
//! | [`faults`] | what breaks: networks, disks and their power |
//! | [`mod@drive`] | running a job to its end or until a signal, in a namespace or not |
//! | [`chaos`], [`powercut`], [`diskfaults`], [`upgrade`], [`abuse`] | one job for each command of the program: its schedule only |
//!
//! A job that cannot be done on the machine at hand (no right to make network
//! namespaces, no loop devices) says why and is *not run*, which is another
//! exit code than passed and than failed.

pub mod abuse;
pub mod chaos;
pub mod diskfaults;
pub mod drive;
pub mod faults;
pub mod finish;
pub mod floor;
pub mod history;
pub mod ledger;
pub mod load;
pub mod powercut;
pub mod process;
pub mod report;
pub mod upgrade;

pub use report::{Failure, Figures, Result};
