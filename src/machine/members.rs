//! The rules of membership, as pure functions over [`Members`].
//!
//! Each takes the present members and gives the deterministic answer, together
//! with the members that follow if anything changes.

use prost::Message;
use raft::eraftpb::ConfState;
use sha2::{Digest, Sha256};

use crate::proto::{
    AddMember, BindIncarnation, FoundingRecord, Member, Members, Outcome, SetClientUrl, SetPeerUrl,
    outcome,
};

/// An answer, and the new members unless nothing changes.
pub(super) type Ruling = (Outcome, Option<Members>);

/// Cluster ids have 53 bits, because that is what every reader of JSON can take
/// in without rounding.
const CLUSTER_ID_BITS: u32 = 53;

/// The cluster's id: the first bits of the SHA-256 of its founding record,
/// founders sorted by id. Never 0, which means "no cluster".
pub fn cluster_id(founding: &FoundingRecord) -> u64 {
    let mut sorted = founding.clone();
    sorted.founders.sort_by_key(|founder| founder.id);
    let digest: [u8; 32] = Sha256::digest(sorted.encode_to_vec()).into();
    let [a, b, c, d, e, f, g, h, ..] = digest;
    let first = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    (first >> (u64::BITS - CLUSTER_ID_BITS)).max(1)
}

/// The members of a cluster that was just founded: all voters, all bound.
pub fn founding_members(founding: &FoundingRecord) -> Members {
    let mut members: Vec<Member> = founding
        .founders
        .iter()
        .map(|founder| Member {
            id: founder.id,
            peer_url: founder.peer_url.clone(),
            incarnation: founder.incarnation,
            ..Member::default()
        })
        .collect();
    members.sort_by_key(|member| member.id);
    Members { cluster_id: cluster_id(founding), members, removed_ids: Vec::new() }
}

/// The raft configuration of these members, sorted by id.
pub fn conf_state(members: &Members) -> ConfState {
    let ids = |learner: bool| -> Vec<u64> {
        let of_kind = members.members.iter().filter(|member| member.learner == learner);
        of_kind.map(|member| member.id).collect()
    };
    ConfState::from((ids(false), ids(true)))
}

/// The member with this id.
pub fn member(members: &Members, id: u64) -> Option<&Member> {
    members.members.iter().find(|member| member.id == id)
}

/// Adds a learner. Adding the same id and URL again changes nothing.
pub(super) fn add(members: &Members, add: &AddMember) -> Ruling {
    let AddMember { id, peer_url, promote_when_caught_up } = add;
    if *id == 0 {
        return conflict("a member's id is at least 1");
    }
    if let Some(present) = member(members, *id) {
        return if present.peer_url == *peer_url {
            unchanged(present)
        } else {
            conflict(format!("id {id} is in use by the member at {}", present.peer_url))
        };
    }
    if members.removed_ids.binary_search(id).is_ok() {
        return conflict(format!("id {id} was used before; ids are never reused"));
    }
    if let Some(owner) = url_owner(members, peer_url) {
        return conflict(format!("{peer_url} is in use by member {owner}"));
    }
    let added = Member {
        id: *id,
        peer_url: peer_url.clone(),
        learner: true,
        promote_when_caught_up: *promote_when_caught_up,
        ..Member::default()
    };
    let mut after = members.clone();
    let place = after.members.partition_point(|member| member.id < *id);
    after.members.insert(place, added.clone());
    (took_effect(added), Some(after))
}

/// Makes a learner that has started a voter. Whether it has caught up is known
/// only to the leader, which checks it before it proposes.
pub(super) fn promote(members: &Members, id: u64) -> Ruling {
    let Some(present) = member(members, id) else { return not_found(id) };
    if !present.learner {
        return unchanged(present);
    }
    if present.incarnation == 0 {
        return conflict(format!("member {id} has not started yet"));
    }
    update(members, id, |member| {
        member.learner = false;
        member.promote_when_caught_up = false;
    })
}

/// Removes a member; its id can never be used again.
pub(super) fn remove(members: &Members, id: u64) -> Ruling {
    let Some(present) = member(members, id) else { return not_found(id) };
    let voters = members.members.iter().filter(|member| !member.learner).count();
    if !present.learner && voters == 1 {
        return conflict(format!("member {id} is the last voter"));
    }
    let mut after = members.clone();
    after.members.retain(|member| member.id != id);
    let place = after.removed_ids.partition_point(|removed| *removed < id);
    after.removed_ids.insert(place, id);
    (took_effect(present.clone()), Some(after))
}

/// Binds an incarnation to a member that has none.
pub(super) fn bind_incarnation(members: &Members, bind: &BindIncarnation) -> Ruling {
    let BindIncarnation { id, incarnation } = *bind;
    let Some(present) = member(members, id) else { return not_found(id) };
    if incarnation == 0 {
        return conflict("an incarnation is at least 1");
    }
    if present.incarnation == incarnation {
        return unchanged(present);
    }
    if present.incarnation != 0 {
        return conflict(format!(
            "id {id} is bound to another incarnation: its data is gone; \
             remove member {id} and add it again under a new id"
        ));
    }
    update(members, id, |member| member.incarnation = incarnation)
}

/// Sets the address at which clients reach a member.
pub(super) fn set_client_url(members: &Members, set: &SetClientUrl) -> Ruling {
    let Some(present) = member(members, set.id) else { return not_found(set.id) };
    if present.client_url == set.client_url {
        return unchanged(present);
    }
    update(members, set.id, |member| member.client_url.clone_from(&set.client_url))
}

/// Sets the address at which other members reach a member.
pub(super) fn set_peer_url(members: &Members, set: &SetPeerUrl) -> Ruling {
    let Some(present) = member(members, set.id) else { return not_found(set.id) };
    if present.peer_url == set.peer_url {
        return unchanged(present);
    }
    if let Some(owner) = url_owner(members, &set.peer_url) {
        return conflict(format!("{} is in use by member {owner}", set.peer_url));
    }
    update(members, set.id, |member| member.peer_url.clone_from(&set.peer_url))
}

/// The answer to a command that contradicts the present members.
pub(super) fn conflict(why: impl Into<String>) -> Ruling {
    (Outcome { result: Some(outcome::Result::Conflict(why.into())), ..Outcome::default() }, None)
}

fn not_found(id: u64) -> Ruling {
    (Outcome { result: Some(outcome::Result::MemberNotFound(id)), ..Outcome::default() }, None)
}

fn unchanged(member: &Member) -> Ruling {
    (took_effect(member.clone()), None)
}

fn took_effect(member: Member) -> Outcome {
    Outcome { result: Some(outcome::Result::Member(member)), ..Outcome::default() }
}

fn url_owner(members: &Members, peer_url: &str) -> Option<u64> {
    members.members.iter().find(|member| member.peer_url == peer_url).map(|member| member.id)
}

/// Changes one member, which must be present.
fn update(members: &Members, id: u64, change: impl FnOnce(&mut Member)) -> Ruling {
    let mut after = members.clone();
    let Some(member) = after.members.iter_mut().find(|member| member.id == id) else {
        return not_found(id);
    };
    change(member);
    let changed = member.clone();
    (took_effect(changed), Some(after))
}
