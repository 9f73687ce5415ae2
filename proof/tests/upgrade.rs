//! The short round of `make upgrade`: from the previous version where it was
//! built, from this one to itself otherwise.

mod rounds;

use std::{env, path::PathBuf};

use metastore_proof::{
    process::find_binary,
    upgrade::{self, Options},
};

/// The program of the previous version.
const PREVIOUS: &str = "METASTORE_PREVIOUS";

#[test]
fn a_cluster_is_upgraded_under_load() {
    rounds::short("upgrade", || {
        let binary = find_binary(None)?;
        let previous = env::var_os(PREVIOUS).filter(|path| !path.is_empty());
        let previous = previous.map_or_else(|| binary.clone(), PathBuf::from);
        upgrade::run(&binary, &Options::from(previous))
    });
}
