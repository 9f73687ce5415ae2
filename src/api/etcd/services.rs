//! All services on their paths.

use tonic::{codec::CompressionEncoding, service::Routes};

use super::{Etcd, watch::WatchServer};
use crate::proto::{
    FILE_DESCRIPTOR_SET,
    etcdserverpb::{
        auth_server::AuthServer, cluster_server::ClusterServer, kv_server::KvServer,
        lease_server::LeaseServer, maintenance_server::MaintenanceServer,
    },
    grpc::health::v1::health_server::HealthServer,
    v3electionpb::election_server::ElectionServer,
    v3lockpb::lock_server::LockServer,
};

/// What a request may be larger than the limit on requests before it is not
/// even read, in bytes: for messages around it, as in etcd.
const REQUEST_OVERHEAD_BYTES: u64 = 512 << 10;

/// The largest request of the services that take no values, in bytes.
const SMALL_REQUEST_BYTES: usize = 64 << 10;

/// What reflection relies on, and a test builds.
const DESCRIPTORS: &str = "the messages are described as they were compiled";

/// A service with its bounds on requests. They may come compressed; answers
/// do not leave so, because it costs more than it saves.
macro_rules! bounded {
    ($server:ident, $etcd:expr, $most:expr) => {
        $server::new($etcd.clone())
            .max_decoding_message_size($most)
            .accept_compressed(CompressionEncoding::Gzip)
    };
}

/// The largest message that is read, in bytes.
pub(super) fn max_message_bytes(etcd: &Etcd) -> usize {
    let request_bytes = etcd.shared.limits.max_request_bytes.saturating_add(REQUEST_OVERHEAD_BYTES);
    usize::try_from(request_bytes).unwrap_or(usize::MAX)
}

/// The service of keys, which reads messages of at most so many bytes.
pub(super) fn kv(etcd: &Etcd, most: usize) -> KvServer<Etcd> {
    bounded!(KvServer, etcd, most)
}

/// The other services, which read messages of at most so many bytes.
pub(super) fn routes(etcd: &Etcd, most: usize) -> Routes {
    Routes::new(WatchServer { etcd: etcd.clone(), max_request_bytes: most })
        .add_service(bounded!(LeaseServer, etcd, SMALL_REQUEST_BYTES))
        .add_service(bounded!(LockServer, etcd, most))
        .add_service(bounded!(ElectionServer, etcd, most))
        .add_service(bounded!(AuthServer, etcd, SMALL_REQUEST_BYTES))
        .add_service(bounded!(ClusterServer, etcd, SMALL_REQUEST_BYTES))
        .add_service(bounded!(MaintenanceServer, etcd, SMALL_REQUEST_BYTES))
        .add_service(bounded!(HealthServer, etcd, SMALL_REQUEST_BYTES))
        .add_service(
            reflection()
                .build_v1()
                .expect(DESCRIPTORS)
                .max_decoding_message_size(SMALL_REQUEST_BYTES),
        )
        .add_service(
            reflection()
                .build_v1alpha()
                .expect(DESCRIPTORS)
                .max_decoding_message_size(SMALL_REQUEST_BYTES),
        )
        .prepare()
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
}
