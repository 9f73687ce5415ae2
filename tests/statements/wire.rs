//! The generated types, from one place.

pub use metastore::proto::{
    etcdserverpb::*, grpc::health::v1 as health, mvccpb, v3electionpb, v3lockpb,
};
