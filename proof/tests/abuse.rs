//! The short round of `make abuse`.

mod rounds;

use metastore_proof::{
    abuse::{self, Options},
    process::find_binary,
};

#[test]
fn every_kind_of_abuse_beside_a_client_that_behaves_well() {
    let options = Options {
        minutes: 0.3,
        timing: false,
        watchers: 600,
        slow: 84,
        drops: 600,
        proposals: 1_000,
        unread: 6,
        big_mib: 32,
        only: None,
        brief: true,
        keep: false,
    };
    rounds::short("abuse", || abuse::run(&find_binary(None)?, &options));
}
