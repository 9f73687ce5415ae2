//! The state machine against a simple model: random histories of commands,
//! crashes and forgetting, on both engines; every answer and every read of the
//! past must be the model's, and every fingerprint that of a member whose disk
//! never forgot anything.

mod actions;
mod history;
mod model;
mod store;

use metastore::proto::etcdserverpb::{RangeRequest, TxnRequest};
use proptest::{collection::vec, prelude::*};

use actions::{Action, any_action, any_range, any_txn};
use history::History;
use store::{Memory, Rocks, Store};

/// What is read whenever reads are compared.
#[derive(Debug)]
struct Reads {
    ranges: Vec<RangeRequest>,
    txns: Vec<TxnRequest>,
    /// Bytes of a page of changes.
    page_bytes: usize,
}

fn any_reads() -> impl Strategy<Value = Reads> {
    let page_bytes = prop_oneof![Just(0), 1..300_usize, Just(usize::MAX)];
    (vec(any_range(), 10..40), vec(any_txn(false), 1..6), page_bytes)
        .prop_map(|(ranges, txns, page_bytes)| Reads { ranges, txns, page_bytes })
}

fn run<S: Store>(actions: &[Action], reads: &Reads) -> Result<(), TestCaseError> {
    let mut history = History::<S>::new();
    for action in actions {
        history.act(action, reads)?;
    }
    history.check(reads)
}

/// Cases of a test, unless PROPTEST_CASES says more.
fn config(cases: u32) -> ProptestConfig {
    let given = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let cases = given.unwrap_or(cases);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn the_machine_over_memory_is_the_model(
        actions in vec(any_action(), 1..40),
        reads in any_reads(),
    ) {
        run::<Memory>(&actions, &reads)?;
    }
}

proptest! {
    #![proptest_config(config(12))]

    #[test]
    fn the_machine_over_rocksdb_is_the_model(
        actions in vec(any_action(), 1..40),
        reads in any_reads(),
    ) {
        run::<Rocks>(&actions, &reads)?;
    }
}
