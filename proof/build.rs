//! Compiles the library that makes disks fail.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=shim/disk.c");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo names the output directory"));
    // A library that the dynamic linker loads, which `cc` itself does not make.
    let compiler = cc::Build::new().std("gnu11").pic(true).warnings(true).get_compiler();
    let mut command = compiler.to_command();
    command.args(["-shared", "-o"]).arg(out.join("disk.so")).args(["shim/disk.c", "-ldl"]);
    let status = command.status().expect("the C compiler starts");
    assert!(status.success(), "the C compiler refuses shim/disk.c");
}
