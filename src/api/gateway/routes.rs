//! Which path stands for which method, as in etcd.

use axum::extract::Request;

use super::{
    Gateway,
    call::{Answer, Answering, Question, exchange, server_stream, subscription, unary},
    is_for,
};
use crate::proto::{etcdserverpb::*, v3electionpb::*, v3lockpb::*};

/// A path of the gateway.
#[derive(Debug)]
pub(in crate::api) struct Route {
    pub(super) path: &'static str,
    /// `/package.Service/Method`
    pub(in crate::api) method: &'static str,
    pub(super) call: fn(Gateway, &'static Self, Request) -> Answering,
}

impl Route {
    /// Where a request goes, if it is for the gateway and there is such a path.
    pub(in crate::api) fn of(request: &Request) -> Option<&'static Self> {
        let path = request.uri().path();
        ROUTES.iter().find(|route| is_for(request) && route.path == path)
    }
}

const fn one<Q: Question, A: Answer>(path: &'static str, method: &'static str) -> Route {
    Route { path, method, call: unary::<Q, A> }
}

const fn many<Q: Question, A: Answer>(path: &'static str, method: &'static str) -> Route {
    Route { path, method, call: server_stream::<Q, A> }
}

#[rustfmt::skip]
const ROUTES: &[Route] = &[
    one::<RangeRequest, RangeResponse>("/v3/kv/range", "/etcdserverpb.KV/Range"),
    one::<PutRequest, PutResponse>("/v3/kv/put", "/etcdserverpb.KV/Put"),
    one::<DeleteRangeRequest, DeleteRangeResponse>("/v3/kv/deleterange", "/etcdserverpb.KV/DeleteRange"),
    one::<TxnRequest, TxnResponse>("/v3/kv/txn", "/etcdserverpb.KV/Txn"),
    one::<CompactionRequest, CompactionResponse>("/v3/kv/compaction", "/etcdserverpb.KV/Compact"),
    Route { path: "/v3/watch", method: "/etcdserverpb.Watch/Watch", call: subscription::<WatchRequest, WatchResponse> },
    one::<LeaseGrantRequest, LeaseGrantResponse>("/v3/lease/grant", "/etcdserverpb.Lease/LeaseGrant"),
    one::<LeaseRevokeRequest, LeaseRevokeResponse>("/v3/lease/revoke", "/etcdserverpb.Lease/LeaseRevoke"),
    one::<LeaseRevokeRequest, LeaseRevokeResponse>("/v3/kv/lease/revoke", "/etcdserverpb.Lease/LeaseRevoke"),
    one::<LeaseTimeToLiveRequest, LeaseTimeToLiveResponse>("/v3/lease/timetolive", "/etcdserverpb.Lease/LeaseTimeToLive"),
    one::<LeaseTimeToLiveRequest, LeaseTimeToLiveResponse>("/v3/kv/lease/timetolive", "/etcdserverpb.Lease/LeaseTimeToLive"),
    one::<LeaseLeasesRequest, LeaseLeasesResponse>("/v3/lease/leases", "/etcdserverpb.Lease/LeaseLeases"),
    one::<LeaseLeasesRequest, LeaseLeasesResponse>("/v3/kv/lease/leases", "/etcdserverpb.Lease/LeaseLeases"),
    Route { path: "/v3/lease/keepalive", method: "/etcdserverpb.Lease/LeaseKeepAlive", call: exchange::<LeaseKeepAliveRequest, LeaseKeepAliveResponse> },
    one::<MemberAddRequest, MemberAddResponse>("/v3/cluster/member/add", "/etcdserverpb.Cluster/MemberAdd"),
    one::<MemberRemoveRequest, MemberRemoveResponse>("/v3/cluster/member/remove", "/etcdserverpb.Cluster/MemberRemove"),
    one::<MemberUpdateRequest, MemberUpdateResponse>("/v3/cluster/member/update", "/etcdserverpb.Cluster/MemberUpdate"),
    one::<MemberListRequest, MemberListResponse>("/v3/cluster/member/list", "/etcdserverpb.Cluster/MemberList"),
    one::<MemberPromoteRequest, MemberPromoteResponse>("/v3/cluster/member/promote", "/etcdserverpb.Cluster/MemberPromote"),
    one::<AlarmRequest, AlarmResponse>("/v3/maintenance/alarm", "/etcdserverpb.Maintenance/Alarm"),
    one::<StatusRequest, StatusResponse>("/v3/maintenance/status", "/etcdserverpb.Maintenance/Status"),
    one::<DefragmentRequest, DefragmentResponse>("/v3/maintenance/defragment", "/etcdserverpb.Maintenance/Defragment"),
    one::<HashRequest, HashResponse>("/v3/maintenance/hash", "/etcdserverpb.Maintenance/Hash"),
    one::<HashKvRequest, HashKvResponse>("/v3/maintenance/hashkv", "/etcdserverpb.Maintenance/HashKV"),
    one::<MoveLeaderRequest, MoveLeaderResponse>("/v3/maintenance/transfer-leadership", "/etcdserverpb.Maintenance/MoveLeader"),
    one::<DowngradeRequest, DowngradeResponse>("/v3/maintenance/downgrade", "/etcdserverpb.Maintenance/Downgrade"),
    many::<SnapshotRequest, SnapshotResponse>("/v3/maintenance/snapshot", "/etcdserverpb.Maintenance/Snapshot"),
    one::<AuthEnableRequest, AuthEnableResponse>("/v3/auth/enable", "/etcdserverpb.Auth/AuthEnable"),
    one::<AuthDisableRequest, AuthDisableResponse>("/v3/auth/disable", "/etcdserverpb.Auth/AuthDisable"),
    one::<AuthStatusRequest, AuthStatusResponse>("/v3/auth/status", "/etcdserverpb.Auth/AuthStatus"),
    one::<AuthenticateRequest, AuthenticateResponse>("/v3/auth/authenticate", "/etcdserverpb.Auth/Authenticate"),
    one::<AuthUserAddRequest, AuthUserAddResponse>("/v3/auth/user/add", "/etcdserverpb.Auth/UserAdd"),
    one::<AuthUserGetRequest, AuthUserGetResponse>("/v3/auth/user/get", "/etcdserverpb.Auth/UserGet"),
    one::<AuthUserListRequest, AuthUserListResponse>("/v3/auth/user/list", "/etcdserverpb.Auth/UserList"),
    one::<AuthUserDeleteRequest, AuthUserDeleteResponse>("/v3/auth/user/delete", "/etcdserverpb.Auth/UserDelete"),
    one::<AuthUserChangePasswordRequest, AuthUserChangePasswordResponse>("/v3/auth/user/changepw", "/etcdserverpb.Auth/UserChangePassword"),
    one::<AuthUserGrantRoleRequest, AuthUserGrantRoleResponse>("/v3/auth/user/grant", "/etcdserverpb.Auth/UserGrantRole"),
    one::<AuthUserRevokeRoleRequest, AuthUserRevokeRoleResponse>("/v3/auth/user/revoke", "/etcdserverpb.Auth/UserRevokeRole"),
    one::<AuthRoleAddRequest, AuthRoleAddResponse>("/v3/auth/role/add", "/etcdserverpb.Auth/RoleAdd"),
    one::<AuthRoleGetRequest, AuthRoleGetResponse>("/v3/auth/role/get", "/etcdserverpb.Auth/RoleGet"),
    one::<AuthRoleListRequest, AuthRoleListResponse>("/v3/auth/role/list", "/etcdserverpb.Auth/RoleList"),
    one::<AuthRoleDeleteRequest, AuthRoleDeleteResponse>("/v3/auth/role/delete", "/etcdserverpb.Auth/RoleDelete"),
    one::<AuthRoleGrantPermissionRequest, AuthRoleGrantPermissionResponse>("/v3/auth/role/grant", "/etcdserverpb.Auth/RoleGrantPermission"),
    one::<AuthRoleRevokePermissionRequest, AuthRoleRevokePermissionResponse>("/v3/auth/role/revoke", "/etcdserverpb.Auth/RoleRevokePermission"),
    one::<LockRequest, LockResponse>("/v3/lock/lock", "/v3lockpb.Lock/Lock"),
    one::<UnlockRequest, UnlockResponse>("/v3/lock/unlock", "/v3lockpb.Lock/Unlock"),
    one::<CampaignRequest, CampaignResponse>("/v3/election/campaign", "/v3electionpb.Election/Campaign"),
    one::<ProclaimRequest, ProclaimResponse>("/v3/election/proclaim", "/v3electionpb.Election/Proclaim"),
    one::<LeaderRequest, LeaderResponse>("/v3/election/leader", "/v3electionpb.Election/Leader"),
    one::<ResignRequest, ResignResponse>("/v3/election/resign", "/v3electionpb.Election/Resign"),
    many::<LeaderRequest, LeaderResponse>("/v3/election/observe", "/v3electionpb.Election/Observe"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use axum::{body::Body, http::Method};

    use super::*;
    use crate::proto::sources;

    fn at(method: Method, path: &str) -> Option<&'static str> {
        let request = Request::builder().method(method).uri(path).body(Body::empty());
        Route::of(&request.expect("a request")).map(|route| route.method)
    }

    #[test]
    fn only_post_is_for_the_gateway() {
        assert_eq!(at(Method::POST, "/v3/kv/range"), Some("/etcdserverpb.KV/Range"));
        assert_eq!(at(Method::POST, "/v3/kv/range?x"), Some("/etcdserverpb.KV/Range"));
        assert_eq!(at(Method::GET, "/v3/kv/range"), None);
        assert_eq!(at(Method::PUT, "/v3/kv/range"), None);
        for unknown in ["/v3/kv", "/v3/", "/v3/kv/range/", "/v3beta/kv/range", "/v3%2Fkv/range"] {
            assert_eq!(at(Method::POST, unknown), None, "{unknown}");
        }
    }

    #[test]
    fn every_method_of_the_messages_has_a_path() {
        let paths: BTreeSet<_> = ROUTES.iter().map(|route| route.path).collect();
        assert_eq!(paths.len(), ROUTES.len(), "a path is there twice");
        let methods: BTreeSet<_> = ROUTES.iter().map(|route| route.method).collect();
        let mut seen = 0;
        for (package, text) in [
            ("etcdserverpb", sources::RPC),
            ("v3lockpb", sources::V3LOCK),
            ("v3electionpb", sources::V3ELECTION),
        ] {
            let mut service = "";
            for line in text.lines().map(str::trim) {
                let name = |rest: &'static str| rest.split([' ', '(']).next().unwrap_or(rest);
                if let Some(rest) = line.strip_prefix("service ") {
                    service = name(rest);
                } else if let Some(rest) = line.strip_prefix("rpc ") {
                    let method = format!("/{package}.{service}/{}", name(rest));
                    // A list of any length is what ?list is for.
                    let expected = method != "/etcdserverpb.KV/RangeStream";
                    assert_eq!(methods.contains(method.as_str()), expected, "{method}");
                    seen += 1;
                }
            }
        }
        assert_eq!(methods.len() + 1, seen, "a method that does not exist");
    }
}
