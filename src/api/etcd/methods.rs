//! The methods that are served, as the path of a call names them.

use axum::{
    extract::Request,
    http::{HeaderMap, Method as HttpMethod, Version, header::CONTENT_TYPE},
};

/// How long a call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duration {
    /// As long as its work.
    Brief,
    /// Until something happens, with one answer.
    Waiting,
    /// As long as the client likes, with many answers.
    Stream,
}

/// A method of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Method {
    /// `/package.Service/Method`, or `other` for whatever is not served.
    pub(crate) path: &'static str,
    pub(crate) duration: Duration,
    /// Whether the client, too, sends any number of messages.
    pub(crate) client_streams: bool,
    /// Whether a learner answers it. Ranges say for themselves.
    pub(crate) for_learners: bool,
}

const fn brief(path: &'static str) -> Method {
    Method { path, duration: Duration::Brief, client_streams: false, for_learners: false }
}

const fn waiting(path: &'static str) -> Method {
    Method { duration: Duration::Waiting, ..brief(path) }
}

const fn stream(path: &'static str) -> Method {
    Method { duration: Duration::Stream, ..brief(path) }
}

const fn both_stream(path: &'static str) -> Method {
    Method { client_streams: true, ..stream(path) }
}

const fn for_learners(method: Method) -> Method {
    Method { for_learners: true, ..method }
}

/// A call of something that is not served.
const OTHER: Method = for_learners(brief("other"));

const METHODS: &[Method] = &[
    for_learners(brief("/etcdserverpb.KV/Range")),
    for_learners(stream("/etcdserverpb.KV/RangeStream")),
    brief("/etcdserverpb.KV/Put"),
    brief("/etcdserverpb.KV/DeleteRange"),
    brief("/etcdserverpb.KV/Txn"),
    // A physical compaction answers when the work is done.
    waiting("/etcdserverpb.KV/Compact"),
    both_stream("/etcdserverpb.Watch/Watch"),
    brief("/etcdserverpb.Lease/LeaseGrant"),
    brief("/etcdserverpb.Lease/LeaseRevoke"),
    both_stream("/etcdserverpb.Lease/LeaseKeepAlive"),
    brief("/etcdserverpb.Lease/LeaseTimeToLive"),
    brief("/etcdserverpb.Lease/LeaseLeases"),
    brief("/etcdserverpb.Cluster/MemberAdd"),
    brief("/etcdserverpb.Cluster/MemberRemove"),
    brief("/etcdserverpb.Cluster/MemberUpdate"),
    brief("/etcdserverpb.Cluster/MemberList"),
    brief("/etcdserverpb.Cluster/MemberPromote"),
    brief("/etcdserverpb.Maintenance/Alarm"),
    for_learners(brief("/etcdserverpb.Maintenance/Status")),
    waiting("/etcdserverpb.Maintenance/Defragment"),
    waiting("/etcdserverpb.Maintenance/Hash"),
    waiting("/etcdserverpb.Maintenance/HashKV"),
    for_learners(stream("/etcdserverpb.Maintenance/Snapshot")),
    brief("/etcdserverpb.Maintenance/MoveLeader"),
    brief("/etcdserverpb.Maintenance/Downgrade"),
    brief("/etcdserverpb.Auth/AuthEnable"),
    brief("/etcdserverpb.Auth/AuthDisable"),
    brief("/etcdserverpb.Auth/AuthStatus"),
    brief("/etcdserverpb.Auth/Authenticate"),
    brief("/etcdserverpb.Auth/UserAdd"),
    brief("/etcdserverpb.Auth/UserGet"),
    brief("/etcdserverpb.Auth/UserList"),
    brief("/etcdserverpb.Auth/UserDelete"),
    brief("/etcdserverpb.Auth/UserChangePassword"),
    brief("/etcdserverpb.Auth/UserGrantRole"),
    brief("/etcdserverpb.Auth/UserRevokeRole"),
    brief("/etcdserverpb.Auth/RoleAdd"),
    brief("/etcdserverpb.Auth/RoleGet"),
    brief("/etcdserverpb.Auth/RoleList"),
    brief("/etcdserverpb.Auth/RoleDelete"),
    brief("/etcdserverpb.Auth/RoleGrantPermission"),
    brief("/etcdserverpb.Auth/RoleRevokePermission"),
    waiting("/v3lockpb.Lock/Lock"),
    brief("/v3lockpb.Lock/Unlock"),
    waiting("/v3electionpb.Election/Campaign"),
    brief("/v3electionpb.Election/Proclaim"),
    brief("/v3electionpb.Election/Leader"),
    stream("/v3electionpb.Election/Observe"),
    brief("/v3electionpb.Election/Resign"),
    for_learners(brief("/grpc.health.v1.Health/Check")),
    for_learners(stream("/grpc.health.v1.Health/Watch")),
    for_learners(both_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")),
    for_learners(both_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")),
];

impl Method {
    /// The method that a request calls; `None` when it is no gRPC call.
    ///
    /// gRPC is spoken over HTTP/2 alone, which keeps plain requests with an
    /// odd content type what they are.
    pub(crate) fn of(request: &Request) -> Option<Self> {
        let is_call = request.version() == Version::HTTP_2
            && request.method() == HttpMethod::POST
            && has_grpc_content(request.headers());
        is_call.then(|| Self::at(request.uri().path()))
    }

    /// The method that a path names.
    pub(crate) fn at(path: &str) -> Self {
        METHODS.iter().find(|method| method.path == path).copied().unwrap_or(OTHER)
    }
}

/// `application/grpc`, alone or with a suffix or parameters; not gRPC-Web.
fn has_grpc_content(headers: &HeaderMap) -> bool {
    let content = headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
    let rest = content.and_then(|content| content.strip_prefix(b"application/grpc"));
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;
    use crate::proto::sources;

    fn request(version: Version, method: HttpMethod, path: &str, content: &str) -> Request {
        Request::builder()
            .version(version)
            .method(method)
            .uri(path)
            .header(CONTENT_TYPE, content)
            .body(Body::empty())
            .expect("a request")
    }

    #[test]
    fn calls_are_told_by_their_content_type() {
        let path = "/etcdserverpb.KV/Range";
        for content in ["application/grpc", "application/grpc+proto", "application/grpc; x=y"] {
            let call = request(Version::HTTP_2, HttpMethod::POST, path, content);
            assert_eq!(Method::of(&call).map(|method| method.path), Some(path), "{content}");
        }
        for content in ["application/grpc-web", "application/json", "text/application/grpc"] {
            let plain = request(Version::HTTP_2, HttpMethod::POST, path, content);
            assert_eq!(Method::of(&plain), None, "{content}");
        }
        let put = request(Version::HTTP_2, HttpMethod::PUT, "/key", "application/grpc");
        assert_eq!(Method::of(&put), None);
        let old = request(Version::HTTP_11, HttpMethod::POST, path, "application/grpc");
        assert_eq!(Method::of(&old), None);
    }

    #[test]
    fn invented_methods_share_a_label() {
        let call = request(Version::HTTP_2, HttpMethod::POST, "/no.such/Call", "application/grpc");
        assert_eq!(Method::of(&call), Some(OTHER));
    }

    #[test]
    fn every_method_of_the_messages_is_known() {
        let services = [sources::RPC, sources::V3LOCK, sources::V3ELECTION, sources::HEALTH];
        let mut seen = 0;
        for text in services {
            let (mut package, mut service) = ("", "");
            for line in text.lines().map(str::trim) {
                let name = |rest: &'static str| rest.split([' ', '(', ';']).next().unwrap_or(rest);
                if let Some(rest) = line.strip_prefix("package ") {
                    package = name(rest);
                } else if let Some(rest) = line.strip_prefix("service ") {
                    service = name(rest);
                } else if let Some(rest) = line.strip_prefix("rpc ") {
                    let path = format!("/{package}.{service}/{}", name(rest));
                    let method = Method::at(&path);
                    assert_eq!(method.path, path);
                    let streams = rest.contains("returns (stream");
                    assert_eq!(method.duration == Duration::Stream, streams, "{path}");
                    let (asked, _) = rest.split_once("returns").expect("a method returns");
                    let client_streams = asked.contains("(stream");
                    assert_eq!(method.client_streams, client_streams, "{path}");
                    seen += 1;
                }
            }
        }
        assert!(seen > 50, "only {seen} methods were found");
    }
}
