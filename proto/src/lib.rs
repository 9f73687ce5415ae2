//! The project's own messages, compiled from `metastore.proto`, and etcd's,
//! compiled from `etcd/*.proto`: one module for each package.

#![allow(missing_docs, clippy::all, clippy::pedantic)]

pub use metastore::v1::*;

pub mod metastore {
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/metastore.v1.rs"));
    }
}

pub mod mvccpb {
    include!(concat!(env!("OUT_DIR"), "/mvccpb.rs"));
    include!(concat!(env!("OUT_DIR"), "/mvccpb.serde.rs"));
}

pub mod leasepb {
    include!(concat!(env!("OUT_DIR"), "/leasepb.rs"));
}

pub mod authpb {
    include!(concat!(env!("OUT_DIR"), "/authpb.rs"));
    include!(concat!(env!("OUT_DIR"), "/authpb.serde.rs"));
}

pub mod etcdserverpb {
    include!(concat!(env!("OUT_DIR"), "/etcdserverpb.rs"));
    include!(concat!(env!("OUT_DIR"), "/etcdserverpb.serde.rs"));
}

pub mod v3lockpb {
    include!(concat!(env!("OUT_DIR"), "/v3lockpb.rs"));
    include!(concat!(env!("OUT_DIR"), "/v3lockpb.serde.rs"));
}

pub mod v3electionpb {
    include!(concat!(env!("OUT_DIR"), "/v3electionpb.rs"));
    include!(concat!(env!("OUT_DIR"), "/v3electionpb.serde.rs"));
}

pub mod grpc {
    pub mod health {
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
        }
    }
}

/// Every message above, encoded, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// What etcd's services are defined in, as text: their routes and methods are
/// checked against it.
pub mod sources {
    pub const RPC: &str = include_str!("../etcd/rpc.proto");
    pub const V3LOCK: &str = include_str!("../etcd/v3lock.proto");
    pub const V3ELECTION: &str = include_str!("../etcd/v3election.proto");
    pub const HEALTH: &str = include_str!("../etcd/health.proto");
}
