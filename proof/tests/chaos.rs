//! The short round of `make chaos`.

mod rounds;

use std::path::Path;

use metastore_proof::{Result, chaos, process::find_binary};

fn one_minute(binary: &Path) -> Result<metastore_proof::Figures> {
    let options = chaos::Options {
        minutes: 1,
        seed: None,
        members: 3,
        rate: 300,
        clients: 6,
        keep: false,
        verbose: false,
    };
    chaos::run(binary, &options)
}

#[test]
fn a_minute_of_kills_pauses_and_partitions_under_load() {
    rounds::short("chaos", || one_minute(&find_binary(None)?));
}
