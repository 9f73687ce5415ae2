//! What operators and probes look at.

use std::fmt::Write;

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header::CONTENT_TYPE, request::Parts},
    response::Response,
};
use serde::{Deserialize, Serialize};

use super::{
    Api,
    keys::{REVISION, bodiless},
    options,
    refusal::{Refusal, from_json, json},
    target::Operation,
};
use crate::{
    metrics::{self, DatabaseSample, NodeSample},
    proto::{Compact, command::Op, etcdserverpb::AlarmMember, outcome::Result as Is},
};

/// The largest body of a request to compact, in bytes: a number, with room to
/// spare.
const MAX_COMPACT_BYTES: u64 = 4 << 10;

pub(super) async fn answer(
    api: &Api,
    operation: Operation,
    head: &Parts,
) -> Result<Response, Refusal> {
    options::none(head.uri.query())?;
    match operation {
        Operation::Status => Ok(status(api)),
        Operation::Health => Ok(health(api).await),
        // Whoever reads this has an answer from a working process.
        Operation::Livez => Ok(text("text/plain; charset=utf-8", "ok\n")),
        Operation::Readyz => match api.handle.is_ready().await {
            Ok(()) => Ok(text("text/plain; charset=utf-8", "ok\n")),
            Err(why) => Err(Refusal::unavailable(format!("not ready: {why}"))),
        },
        Operation::Metrics => Ok(text(metrics::CONTENT_TYPE, scrape(api))),
        Operation::Hash => hash(api).await,
    }
}

fn text(content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[derive(Serialize)]
struct StatusView<'a> {
    id: u64,
    cluster_id: u64,
    version: &'a str,
    role: &'a str,
    leader_id: u64,
    term: u64,
    commit_index: u64,
    applied_index: u64,
    first_index: u64,
    last_index: u64,
    snapshot_index: u64,
    revision: u64,
    learner: bool,
    uptime_s: u64,
    db_size_bytes: u64,
    peers: Vec<PeerView>,
    alarms: Vec<AlarmView>,
}

#[derive(Serialize)]
struct PeerView {
    id: u64,
    matched: u64,
    active: bool,
}

#[derive(Serialize)]
struct AlarmView {
    member: u64,
    /// `corrupt` or `nospace`.
    alarm: String,
}

fn status(api: &Api) -> Response {
    let status = api.handle.status();
    let peer = |peer: &crate::node::PeerStatus| PeerView {
        id: peer.id,
        matched: peer.matched,
        active: peer.active,
    };
    let alarm = |raised: &AlarmMember| AlarmView {
        member: raised.member_id,
        alarm: raised.alarm().as_str_name().to_ascii_lowercase(),
    };
    let view = StatusView {
        id: status.id,
        cluster_id: status.cluster_id,
        version: env!("CARGO_PKG_VERSION"),
        role: status.role,
        leader_id: status.leader_id,
        term: status.term,
        commit_index: status.commit_index,
        applied_index: status.applied_index,
        first_index: status.first_index,
        last_index: status.last_index,
        snapshot_index: status.snapshot_index,
        revision: status.revision,
        learner: status.learner,
        uptime_s: status.uptime.as_secs(),
        db_size_bytes: status.db_size_bytes,
        peers: status.peers.iter().map(peer).collect(),
        alarms: api.handle.alarms().alarms.iter().map(alarm).collect(),
    };
    json(StatusCode::OK, &view)
}

/// The form etcd's probes expect: health is a string.
async fn health(api: &Api) -> Response {
    #[derive(Serialize)]
    struct Health {
        health: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    }
    match api.handle.is_ready().await {
        Ok(()) => json(StatusCode::OK, &Health { health: "true", reason: None }),
        Err(why) => {
            json(StatusCode::SERVICE_UNAVAILABLE, &Health { health: "false", reason: Some(why) })
        }
    }
}

fn scrape(api: &Api) -> String {
    let status = api.handle.status();
    let node = NodeSample {
        term: status.term,
        commit_index: status.commit_index,
        applied_index: status.applied_index,
        first_index: status.first_index,
        last_index: status.last_index,
        snapshot_index: status.snapshot_index,
        revision: status.revision,
        pending_proposals: status.pending_proposals,
        is_leader: status.leader_id != 0 && status.leader_id == status.id,
        has_leader: status.leader_id != 0,
        is_learner: status.learner,
        uptime: status.uptime,
    };
    let databases: Vec<_> = api
        .handle
        .storage_metrics()
        .into_iter()
        .map(|(name, rocks)| DatabaseSample {
            name,
            sst_bytes: rocks.sst_bytes,
            wal_bytes: rocks.wal_bytes,
            memtable_bytes: rocks.memtable_bytes,
            block_cache_bytes: rocks.block_cache_bytes,
            pending_compaction_bytes: rocks.pending_compaction_bytes,
            immutable_memtables: rocks.immutable_memtables,
            write_stopped: rocks.write_stopped,
            background_errors: rocks.background_errors,
        })
        .collect();
    api.metrics.encode(&node, &databases)
}

/// Hashes the state this node has applied. Members at the same applied index
/// have the same hash.
async fn hash(api: &Api) -> Result<Response, Refusal> {
    #[derive(Serialize)]
    struct HashView {
        applied_index: u64,
        revision: u64,
        hash: String,
    }
    let permit = api.hashing.clone().try_acquire_owned().map_err(|_| {
        Refusal::overloaded("another hash is being computed; retry when it is done")
    })?;
    // Also of a member that must not serve: this is how it is looked into.
    let view = api.handle.examine()?;
    let hashing = move || {
        // Held by the work and not by the request, which the client may abandon.
        let _permit = permit;
        view.hash()
    };
    let hash = api.read_aside(hashing).await?;
    let view = HashView {
        applied_index: hash.position.index,
        revision: hash.revision,
        hash: hash.hash.iter().fold(String::with_capacity(64), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        }),
    };
    Ok(json(StatusCode::OK, &view))
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Compaction {
    revision: u64,
}

/// POST /-/compact: the history before a revision is forgotten.
pub(super) async fn compact(api: &Api, head: &Parts, body: Body) -> Result<Response, Refusal> {
    options::none(head.uri.query())?;
    let body = api.bodies.read(head, body, MAX_COMPACT_BYTES).await?;
    let Compaction { revision } = from_json(&body.bytes, "{\"revision\":1000}")?;
    if revision == 0 {
        return Err(Refusal::bad_request(
            "invalid_revision",
            "revisions start at 1; GET /-/status names the newest",
        ));
    }
    let outcome = api.submit(Op::Compact(Compact { revision })).await?;
    match outcome.result {
        Some(Is::Done(_)) => {
            let mut response = bodiless(StatusCode::NO_CONTENT);
            response.headers_mut().insert(REVISION, HeaderValue::from(outcome.store_revision));
            Ok(response)
        }
        other => Err(Refusal::unexpected(other)),
    }
}
