//! Leases under `/-/leases`: what they keep is deleted when nobody renews them.

use axum::{
    body::Body,
    http::{StatusCode, request::Parts},
    response::Response,
};
use serde::{Deserialize, Serialize};

use super::{
    Api,
    keys::bodiless,
    options,
    pair::Key,
    refusal::{Refusal, from_json, json},
};
use crate::proto::{
    GrantLease, LeaseTime, Refused, RevokeLease, command::Op, outcome::Result as Is,
};

/// The longest time of a lease, in seconds, as in etcd.
pub(super) const MAX_TTL_S: i64 = 9_000_000_000;

/// The largest id that is chosen here: whoever reads JSON numbers as floating
/// point still reads it right.
const MAX_RANDOM_ID: i64 = (1 << 53) - 1;

/// The largest body of a grant, in bytes: two numbers, with room to spare.
const MAX_BODY_BYTES: u64 = 4 << 10;

/// How often a random id may be found taken.
const GRANT_TRIES: usize = 3;

const EXAMPLE: &str = "{\"ttl\":60}, and \"id\" if it must be a certain one";

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewLease {
    /// Seconds.
    ttl: i64,
    id: Option<i64>,
}

impl NewLease {
    fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let new: Self = from_json(body, EXAMPLE)?;
        if !(1..=MAX_TTL_S).contains(&new.ttl) {
            return Err(Refusal::bad_request(
                "invalid_ttl",
                format!("ttl is {}; give seconds, from 1 to {MAX_TTL_S}", new.ttl),
            ));
        }
        if new.id == Some(0) {
            return Err(Refusal::bad_request(
                "invalid_lease_id",
                "0 is no lease id; leave id out to have one chosen",
            ));
        }
        Ok(new)
    }
}

#[derive(Serialize)]
struct LeaseView {
    id: i64,
    /// Seconds, as granted.
    ttl: i64,
}

#[derive(Serialize)]
struct LeaseTimeView<'a> {
    id: i64,
    ttl: i64,
    /// Seconds left.
    remaining: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    keys: Option<Vec<Key<'a>>>,
}

/// A lease id that nobody is likely to have.
pub(super) fn random_id() -> i64 {
    rand::random_range(1..=MAX_RANDOM_ID)
}

/// The time a lease is granted for when so many seconds are asked for: a
/// shorter one could run out during an election.
pub(super) fn at_least(api: &Api, ttl_s: i64) -> i64 {
    ttl_s.max(api.handle.min_lease_ttl_s())
}

/// POST /-/leases
pub(super) async fn grant(api: &Api, head: &Parts, body: Body) -> Result<Response, Refusal> {
    options::none(head.uri.query())?;
    let body = api.bodies.read(head, body, MAX_BODY_BYTES).await?;
    let new = NewLease::parse(&body.bytes)?;
    let ttl_s = at_least(api, new.ttl);
    let mut tries = if new.id.is_some() { 1 } else { GRANT_TRIES };
    loop {
        tries -= 1;
        let id = new.id.unwrap_or_else(random_id);
        let outcome = api.submit(Op::GrantLease(GrantLease { id, ttl_s })).await?;
        match outcome.result {
            Some(Is::Lease(lease)) => {
                let view = LeaseView { id: lease.id, ttl: lease.ttl_s };
                return Ok(json(StatusCode::CREATED, &view));
            }
            Some(Is::Refused(why)) if tries > 0 && why == i32::from(Refused::LeaseExists) => {}
            other => return Err(Refusal::unexpected(other)),
        }
    }
}

/// GET /-/leases
pub(super) async fn list(api: &Api, head: &Parts) -> Result<Response, Refusal> {
    #[derive(Serialize)]
    struct List {
        leases: Vec<LeaseView>,
    }
    options::none(head.uri.query())?;
    let view = api.handle.read().await?;
    let read = move || {
        let leases = view.leases()?.into_iter();
        let leases = leases.map(|lease| LeaseView { id: lease.id, ttl: lease.ttl_s }).collect();
        Ok(json(StatusCode::OK, &List { leases }))
    };
    api.keep(api.read_aside(read).await?)
}

/// GET /-/leases/{id}
pub(super) async fn get(api: &Api, id: i64, head: &Parts) -> Result<Response, Refusal> {
    options::none(head.uri.query())?;
    let time = known(id, api.handle.lease_time(id).await?)?;
    let view = api.handle.read().await?;
    let read = move || {
        let keys = view.lease_keys(id)?;
        let keys = keys.iter().map(|key| Key(key)).collect();
        Ok(json(StatusCode::OK, &time_view(id, &time, Some(keys))))
    };
    api.keep(api.read_aside(read).await?)
}

/// POST /-/leases/{id}/keepalive
pub(super) async fn keep_alive(api: &Api, id: i64, head: &Parts) -> Result<Response, Refusal> {
    options::none(head.uri.query())?;
    let time = known(id, api.handle.keep_lease_alive(id).await?)?;
    Ok(json(StatusCode::OK, &time_view(id, &time, None)))
}

/// DELETE /-/leases/{id}
pub(super) async fn revoke(api: &Api, id: i64, head: &Parts) -> Result<Response, Refusal> {
    options::none(head.uri.query())?;
    let outcome = api.submit(Op::RevokeLease(RevokeLease { id })).await?;
    match outcome.result {
        Some(Is::Done(_)) => Ok(bodiless(StatusCode::NO_CONTENT)),
        Some(Is::Refused(why)) if why == i32::from(Refused::LeaseNotFound) => {
            Err(Refusal::lease_not_found(id))
        }
        other => Err(Refusal::unexpected(other)),
    }
}

fn known(id: i64, time: LeaseTime) -> Result<LeaseTime, Refusal> {
    if time.exists { Ok(time) } else { Err(Refusal::lease_not_found(id)) }
}

fn time_view<'a>(id: i64, time: &LeaseTime, keys: Option<Vec<Key<'a>>>) -> LeaseTimeView<'a> {
    LeaseTimeView { id, ttl: time.granted_ttl_s, remaining: time.remaining_s, keys }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_taken_strictly() {
        let parse = |body: &str| NewLease::parse(body.as_bytes()).map_err(|refusal| refusal.code());
        assert_eq!(parse(r#"{"ttl":60}"#), Ok(NewLease { ttl: 60, id: None }));
        let chosen = r#"{"id":-9223372036854775808,"ttl":9000000000}"#;
        assert_eq!(parse(chosen), Ok(NewLease { ttl: MAX_TTL_S, id: Some(i64::MIN) }));
        for (body, code) in [
            ("", "invalid_json"),
            ("{}", "invalid_json"),
            (r#"{"ttl":"60"}"#, "invalid_json"),
            (r#"{"ttl":1.5}"#, "invalid_json"),
            (r#"{"TTL":60}"#, "invalid_json"),
            (r#"{"ttl":60,"id":9223372036854775808}"#, "invalid_json"),
            (r#"{"ttl":0}"#, "invalid_ttl"),
            (r#"{"ttl":-1}"#, "invalid_ttl"),
            (r#"{"ttl":9000000001}"#, "invalid_ttl"),
            (r#"{"ttl":60,"id":0}"#, "invalid_lease_id"),
        ] {
            assert_eq!(parse(body), Err(code), "{body}");
        }
    }

    #[test]
    fn random_ids_are_positive_and_exact_as_floating_point() {
        for _ in 0..1_000 {
            let id = random_id();
            assert!((1..1 << 53).contains(&id), "{id}");
        }
    }
}
