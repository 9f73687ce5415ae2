//! A short round of power cuts.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use metastore_proof::{
    Failure, Figures,
    powercut::{self, Options},
    process::find_binary,
};

fn binary() -> PathBuf {
    find_binary(None).unwrap_or_else(|failure| panic!("{failure}"))
}

/// `None`, and a word about it, where this machine cannot do it.
fn run(options: &Options) -> Option<Result<Figures, Failure>> {
    // One at a time: each loads the whole machine.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    match powercut::run(&binary(), options) {
        Err(Failure::NotRun(why)) => {
            println!("SKIPPED: {why}");
            None
        }
        other => Some(other),
    }
}

#[test]
fn ten_cuts_lose_nothing() {
    let options = Options { cuts: 10, seed: None, lying_disks: false };
    let Some(figures) = run(&options) else { return };
    let figures = figures.unwrap_or_else(|failure| panic!("{failure}"));
    println!("{}", figures.row());
    figures.finish().unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn disks_that_lie_about_syncs_are_noticed() {
    let options = Options { cuts: 1, seed: Some(1), lying_disks: true };
    match run(&options) {
        None | Some(Err(Failure::Failed(_))) => {}
        Some(Err(other)) => panic!("{other}"),
        Some(Ok(figures)) => assert!(figures.finish().is_err(), "{}", figures.row()),
    }
}
