//! The short round of `make powercut`.

mod rounds;

use metastore_proof::{
    Failure, Figures,
    powercut::{self, Options},
    process::find_binary,
};

#[test]
fn ten_cuts_lose_nothing() {
    let options = Options { cuts: 10, seed: None, lying_disks: false };
    rounds::short("powercut", || powercut::run(&find_binary(None)?, &options));
}

/// A job that passes without the syncs would be green for nothing.
#[test]
fn disks_that_lie_about_syncs_are_noticed() {
    let options = Options { cuts: 1, seed: Some(1), lying_disks: true };
    rounds::short("powercut with lying disks", || {
        let verdict = powercut::run(&find_binary(None)?, &options);
        match verdict.and_then(|figures| figures.finish()) {
            Ok(()) => Err(Failure::failed("nobody noticed")),
            Err(Failure::Failed(why)) if why.contains(" violations, first") => {
                Ok(Figures::new("powercut --lying-disks, as it should"))
            }
            Err(other) => Err(other),
        }
    });
}
