//! Compiles the project's own messages and etcd's; no `protoc` is needed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;

/// Where imports are looked for; etcd's files import each other by bare names.
const INCLUDES: [&str; 2] = ["etcd", "."];

const FILES: [&str; 8] = [
    "etcd/kv.proto",
    "etcd/auth.proto",
    "etcd/lease.proto",
    "etcd/rpc.proto",
    "etcd/v3lock.proto",
    "etcd/v3election.proto",
    "etcd/health.proto",
    "metastore.proto",
];

/// The packages that the JSON gateway speaks.
const JSON_PACKAGES: [&str; 5] =
    [".mvccpb", ".authpb", ".etcdserverpb", ".v3lockpb", ".v3electionpb"];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, INCLUDES)?;
    let encoded = descriptors.encode_to_vec();
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), &encoded)?;
    pbjson_build::Builder::new()
        .register_descriptors(&encoded)?
        .preserve_proto_field_names()
        .ignore_unknown_fields()
        .build(&JSON_PACKAGES)?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
