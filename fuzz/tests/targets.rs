//! Ten thousand inputs for every target, and some for the members that
//! `make fuzz GUIDED=1` has within its process.

use std::io::{self, Write};

use metastore_fuzz::{requests::Requests, run, targets::Target};
use metastore_proof::process::find_binary;

/// Inputs of each target.
const INPUTS: u64 = 10_000;

/// Inputs of each member within this process, which takes one at a time.
const INPUTS_INSIDE: u64 = 500;

/// Runs a target, and says what came of it where the test runner shows it.
///
/// # Panics
/// When it failed.
fn enough(name: &str) {
    let target = Target::named(name).expect("a target");
    let binary = || find_binary(None);
    let tally = target.run(&binary, 1, 0..INPUTS, &mut |_| {}).expect("a run");
    assert_eq!(tally.asked, INPUTS);
    // Not by a macro, whose output the test runner would keep to itself.
    let _ = writeln!(
        io::stderr(),
        "| {name} | {} | {} accepted | {} refused | {:.1} s |",
        tally.ran,
        tally.accepted,
        tally.refused,
        tally.seconds
    );
    if let Err(failure) = target.judge(&tally) {
        panic!("{failure}");
    }
}

macro_rules! targets {
    ($($name:ident),+) => {
        $(
            #[test]
            fn $name() {
                enough(stringify!($name));
            }
        )+

        #[test]
        fn no_target_is_left_out() {
            let tested = [$(stringify!($name)),+];
            let all: Vec<&str> = Target::all().into_iter().map(Target::name).collect();
            assert_eq!(tested, all[..]);
        }
    };
}

targets!(
    frames, messages, commands, records, logs, transfers, backups, http, gateway, grpc, wire, peer
);

#[test]
fn members_within_this_process_answer_and_refuse() {
    for requests in Requests::ALL.into_iter().filter(|requests| *requests != Requests::Peer) {
        let target = Target::Requests(requests);
        let mut inside = target.decoder().expect("a member").expect("one of this process");
        let tally = run::run(inside.as_mut(), 1, 0..INPUTS_INSIDE, &mut |_| {});
        assert_eq!((tally.ran, &tally.findings[..]), (INPUTS_INSIDE, &[][..]), "{requests:?}");
        let least = INPUTS_INSIDE / 25;
        assert!(tally.accepted >= least && tally.refused >= least, "{tally:?}");
    }
    let peer = Target::Requests(Requests::Peer).decoder().expect("no need of a member");
    assert!(peer.is_none(), "what peers send is of one cluster");
}
