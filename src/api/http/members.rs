//! The members of the cluster under `/-/members` and `/-/leader`.

use axum::{
    body::Body,
    http::{StatusCode, request::Parts},
    response::Response,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    Api,
    keys::bodiless,
    options,
    refusal::{Refusal, from_json, json},
    target::member_id,
};
use crate::{
    config::normalize_url,
    proto::{
        AddMember, Member, Outcome, PromoteMember, RemoveMember, SetPeerUrl, command::Op,
        outcome::Result as Is,
    },
};

/// The largest body of a membership request, in bytes: an id and a URL, with
/// room to spare.
const MAX_BODY_BYTES: u64 = 64 << 10;

#[derive(Serialize)]
struct MemberList<'a> {
    cluster_id: u64,
    members: Vec<MemberView<'a>>,
}

/// A member as clients see it.
#[derive(Serialize)]
struct MemberView<'a> {
    id: u64,
    peer_url: &'a str,
    client_url: &'a str,
    learner: bool,
}

impl<'a> From<&'a Member> for MemberView<'a> {
    fn from(member: &'a Member) -> Self {
        Self {
            id: member.id,
            peer_url: &member.peer_url,
            client_url: &member.client_url,
            learner: member.learner,
        }
    }
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewMember {
    id: u64,
    peer_url: String,
    /// Whether it stays a learner until it is promoted by hand.
    #[serde(default)]
    learner: bool,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewPeerUrl {
    peer_url: String,
}

/// GET /-/members: as this node knows them, so that it answers without a quorum.
pub(super) fn list(api: &Api, head: &Parts) -> Result<Response, Refusal> {
    options::none(head.uri.query())?;
    let members = api.handle.members();
    let list = MemberList {
        cluster_id: members.cluster_id,
        members: members.members.iter().map(MemberView::from).collect(),
    };
    Ok(json(StatusCode::OK, &list))
}

/// POST /-/members
pub(super) async fn add(api: &Api, head: &Parts, body: Body) -> Result<Response, Refusal> {
    options::none(head.uri.query())?;
    let body = api.bodies.read(head, body, MAX_BODY_BYTES).await?;
    let new: NewMember = from_json(&body.bytes, "{\"id\":4,\"peer_url\":\"http://host:port\"}")?;
    let member = submit_new(api, new).await?;
    Ok(json(StatusCode::CREATED, &MemberView::from(&member)))
}

/// POST /{member id} with the peer URL as body, the raftexample form.
pub(super) async fn add_by_url(
    api: &Api,
    key: &Bytes,
    head: &Parts,
    body: Body,
) -> Result<Response, Refusal> {
    options::none(head.uri.query())?;
    let id = member_id(&String::from_utf8_lossy(key))?;
    let body = api.bodies.read(head, body, MAX_BODY_BYTES).await?;
    let peer_url = String::from_utf8_lossy(body.bytes.trim_ascii()).into_owned();
    submit_new(api, NewMember { id, peer_url, learner: false }).await?;
    Ok(bodiless(StatusCode::NO_CONTENT))
}

/// PUT /-/members/{id}
pub(super) async fn set_peer_url(
    api: &Api,
    id: u64,
    head: &Parts,
    body: Body,
) -> Result<Response, Refusal> {
    options::none(head.uri.query())?;
    let body = api.bodies.read(head, body, MAX_BODY_BYTES).await?;
    let NewPeerUrl { peer_url } = from_json(&body.bytes, "{\"peer_url\":\"http://host:port\"}")?;
    let peer_url = normalized(&peer_url)?;
    changed(api.submit(Op::SetPeerUrl(SetPeerUrl { id, peer_url })).await?)?;
    Ok(bodiless(StatusCode::NO_CONTENT))
}

/// DELETE /-/members/{id}
pub(super) async fn remove(api: &Api, id: u64, head: &Parts) -> Result<Response, Refusal> {
    options::none(head.uri.query())?;
    changed(api.submit(Op::RemoveMember(RemoveMember { id })).await?)?;
    Ok(bodiless(StatusCode::NO_CONTENT))
}

/// POST /-/members/{id}/promote
pub(super) async fn promote(api: &Api, id: u64, head: &Parts) -> Result<Response, Refusal> {
    options::none(head.uri.query())?;
    changed(api.submit(Op::PromoteMember(PromoteMember { id })).await?)?;
    Ok(bodiless(StatusCode::NO_CONTENT))
}

/// POST /-/leader/{id}: answers once that member leads.
pub(super) async fn transfer_leader(api: &Api, id: u64, head: &Parts) -> Result<Response, Refusal> {
    options::none(head.uri.query())?;
    api.handle.transfer_leader(id).await?;
    Ok(bodiless(StatusCode::NO_CONTENT))
}

async fn submit_new(api: &Api, new: NewMember) -> Result<Member, Refusal> {
    if new.id == 0 {
        return Err(Refusal::bad_request("invalid_member_id", "member ids start at 1"));
    }
    let add = AddMember {
        id: new.id,
        peer_url: normalized(&new.peer_url)?,
        promote_when_caught_up: !new.learner,
    };
    changed(api.submit(Op::AddMember(add)).await?)
}

fn normalized(peer_url: &str) -> Result<String, Refusal> {
    normalize_url(peer_url).map_err(|why| Refusal::bad_request("invalid_peer_url", why))
}

/// The member a change was about, once it took effect.
fn changed(outcome: Outcome) -> Result<Member, Refusal> {
    match outcome.result {
        Some(Is::Member(member)) => Ok(member),
        Some(Is::MemberNotFound(id)) => Err(Refusal::member_not_found(id)),
        Some(Is::Conflict(why)) => Err(Refusal::conflict(why)),
        other => Err(Refusal::unexpected(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new_member(body: &str) -> Result<NewMember, Refusal> {
        from_json(body.as_bytes(), "an example")
    }

    #[test]
    fn a_new_member_is_a_voter_in_the_end_unless_told() {
        assert_eq!(
            new_member(r#"{"peer_url":"http://h:1","id":4}"#),
            Ok(NewMember { id: 4, peer_url: "http://h:1".into(), learner: false })
        );
        let learner = new_member(r#"{"id":4,"peer_url":"http://h:1","learner":true}"#);
        assert!(learner.expect("well-formed").learner);
    }

    #[test]
    fn json_is_taken_strictly() {
        for body in [
            "",
            "null",
            "[]",
            "{}",
            "{",
            r#"{"id":4}"#,
            r#"{"id":"4","peer_url":"http://h:1"}"#,
            r#"{"id":-4,"peer_url":"http://h:1"}"#,
            r#"{"id":4.5,"peer_url":"http://h:1"}"#,
            r#"{"id":18446744073709551616,"peer_url":"http://h:1"}"#,
            r#"{"id":4,"peer_url":"http://h:1","voter":true}"#,
            r#"{"id":4,"id":4,"peer_url":"http://h:1"}"#,
            r#"{"id":4,"peer_url":"http://h:1","learner":"no"}"#,
            r#"{"id":4,"peer_url":"http://h:1"} x"#,
            "{\"id\":4,\"peer_url\":\"http://h:1\u{0}",
        ] {
            let refusal = new_member(body).expect_err(body);
            assert_eq!(
                (refusal.status().as_u16(), refusal.code()),
                (400, "invalid_json"),
                "{body}"
            );
        }
    }

    #[test]
    fn outcomes_have_their_statuses() {
        let status = |result| {
            changed(Outcome { result: Some(result), ..Outcome::default() })
                .map_err(|refusal| refusal.status().as_u16())
        };
        let member = Member { id: 4, ..Member::default() };
        assert_eq!(status(Is::Member(member.clone())), Ok(member));
        assert_eq!(status(Is::MemberNotFound(4)), Err(404));
        assert_eq!(status(Is::Conflict("it lags".into())), Err(409));
        assert_eq!(status(Is::Revision(4)), Err(500));
    }
}
