//! The short round of `make diskfaults`: every kind of fault once.

mod rounds;

use metastore_proof::{
    diskfaults::{self, Options},
    process::find_binary,
};

#[test]
fn every_kind_of_disk_fault_once() {
    let options = Options { sites: 5, ..Options::default() };
    rounds::short("diskfaults", || diskfaults::run(&find_binary(None)?, &options));
}
