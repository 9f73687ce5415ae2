//! A short round of every kind of disk fault.

use metastore_proof::{
    diskfaults::{self, Options},
    process::find_binary,
};

#[test]
fn every_kind_of_disk_fault_once() {
    let binary = find_binary(None).unwrap_or_else(|failure| panic!("{failure}"));
    let options = Options { sites: 5, ..Options::default() };
    let figures = diskfaults::run(&binary, &options).unwrap_or_else(|failure| panic!("{failure}"));
    println!("{}", figures.row());
    figures.finish().unwrap_or_else(|failure| panic!("{failure}"));
}
