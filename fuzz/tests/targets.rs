//! Ten thousand inputs for every target.

use std::io::{self, Write};

use metastore_fuzz::targets::Target;
use metastore_proof::process::find_binary;

/// Inputs of each target.
const INPUTS: u64 = 10_000;

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
