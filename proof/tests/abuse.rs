//! The short round of `make abuse`.

mod rounds;

use metastore_proof::{
    abuse::{self, Options},
    process::find_binary,
};

// Not part of `make test` yet: with all abuses together, a leader can lose its
// lead for a term on a small machine, which the round rightly calls a violation.
#[test]
#[ignore = "run it by hand: cargo test --test abuse -- --ignored"]
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
