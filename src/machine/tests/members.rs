use crate::{
    machine::{
        cluster_id, conf_state, founding_members, member,
        members::{self, Ruling},
    },
    proto::{
        AddMember, BindIncarnation, FoundingRecord, Member, Members, SetClientUrl, SetPeerUrl,
        outcome::Result as Is,
    },
};

use super::{founding, result, url};

/// Three founding voters and learner 4, which has not started.
fn with_learner() -> Members {
    let learner = AddMember { id: 4, peer_url: url(4), promote_when_caught_up: true };
    changed(members::add(&founding_members(&founding()), &learner)).1
}

fn changed((outcome, after): Ruling) -> (Member, Members) {
    let Is::Member(member) = result(&outcome) else { panic!("{outcome:?}") };
    (member, after.expect("members that change"))
}

fn unchanged((outcome, after): Ruling) -> Member {
    assert_eq!(after, None);
    let Is::Member(member) = result(&outcome) else { panic!("{outcome:?}") };
    member
}

fn conflict((outcome, after): Ruling) -> String {
    assert_eq!(after, None);
    let Is::Conflict(why) = result(&outcome) else { panic!("{outcome:?}") };
    why
}

fn not_found((outcome, after): Ruling) -> u64 {
    assert_eq!(after, None);
    let Is::MemberNotFound(id) = result(&outcome) else { panic!("{outcome:?}") };
    id
}

fn adding(members: &Members, id: u64, peer_url: &str) -> Ruling {
    let peer_url = peer_url.to_owned();
    members::add(members, &AddMember { id, peer_url, promote_when_caught_up: false })
}

fn binding(members: &Members, id: u64, incarnation: u64) -> Ruling {
    members::bind_incarnation(members, &BindIncarnation { id, incarnation })
}

#[test]
fn the_cluster_id_ignores_the_order_of_founders_and_nothing_else() {
    let record = founding();
    let id = cluster_id(&record);
    assert_eq!(id, 0x4800_7d82_f6db_ada3 >> 11, "pinned: it is stored by every member");
    let mut reversed = record.clone();
    reversed.founders.reverse();
    assert_eq!(cluster_id(&reversed), id);
    for change in 0..3 {
        let mut other = record.clone();
        match change {
            0 => other.founders[1].incarnation += 1,
            1 => other.founders[1].peer_url.push('0'),
            _ => other.founders[1].id = 9,
        }
        assert_ne!(cluster_id(&other), id);
    }
}

#[test]
fn founders_are_bound_voters_sorted_by_id() {
    let mut record = founding();
    record.founders.reverse();
    let members = founding_members(&record);
    assert_eq!(members.cluster_id, cluster_id(&record));
    assert_eq!(members.members.iter().map(|member| member.id).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(members.members.iter().all(|member| !member.learner));
    assert_eq!(member(&members, 2).unwrap().incarnation, 200);
    assert_eq!(member(&members, 2).unwrap().peer_url, url(2));
    assert_eq!(founding_members(&FoundingRecord::default()).members, []);
}

#[test]
fn the_configuration_splits_voters_from_learners() {
    let members = changed(adding(&with_learner(), 7, &url(7))).1;
    let state = conf_state(&members);
    assert_eq!(state.get_voters(), [1, 2, 3]);
    assert_eq!(state.get_learners(), [4, 7]);
    assert!(state.get_voters_outgoing().is_empty() && !state.get_auto_leave());
}

#[test]
fn a_member_is_added_as_a_learner_in_order_of_ids() {
    let before = changed(adding(&with_learner(), 9, &url(9))).1;
    let (added, after) = changed(adding(&before, 6, &url(6)));
    let expected = Member { id: 6, peer_url: url(6), learner: true, ..Member::default() };
    assert_eq!(added, expected);
    let ids: Vec<u64> = after.members.iter().map(|member| member.id).collect();
    assert_eq!(ids, [1, 2, 3, 4, 6, 9]);
    assert!(member(&after, 4).unwrap().promote_when_caught_up);
}

#[test]
fn adding_the_same_member_again_changes_nothing() {
    let members = with_learner();
    assert_eq!(unchanged(adding(&members, 4, &url(4))), members.members[3]);
    assert_eq!(unchanged(adding(&members, 1, &url(1))), members.members[0]);
}

#[test]
fn ids_and_urls_in_use_or_used_before_are_refused() {
    let members = with_learner();
    assert!(conflict(adding(&members, 0, &url(5))).contains("at least 1"));
    let why = conflict(adding(&members, 2, &url(5)));
    assert_eq!(why, format!("id 2 is in use by the member at {}", url(2)));
    let why = conflict(adding(&members, 5, &url(3)));
    assert_eq!(why, format!("{} is in use by member 3", url(3)));

    let members = changed(members::remove(&members, 4)).1;
    let why = conflict(adding(&members, 4, &url(4)));
    assert_eq!(why, "id 4 was used before; ids are never reused");
    // Only the id is used up, not the URL.
    changed(adding(&members, 5, &url(4)));
}

#[test]
fn a_learner_is_promoted_once_it_has_started() {
    let members = with_learner();
    assert_eq!(not_found(members::promote(&members, 8)), 8);
    assert!(conflict(members::promote(&members, 4)).contains("has not started yet"));
    let members = changed(binding(&members, 4, 44)).1;
    let (promoted, after) = changed(members::promote(&members, 4));
    assert!(!promoted.learner && !promoted.promote_when_caught_up);
    assert_eq!(conf_state(&after).get_voters(), [1, 2, 3, 4]);
    assert_eq!(unchanged(members::promote(&after, 4)), promoted);
}

#[test]
fn members_are_removed_down_to_the_last_voter() {
    let mut members = with_learner();
    assert_eq!(not_found(members::remove(&members, 8)), 8);
    for id in [3, 1] {
        let (removed, after) = changed(members::remove(&members, id));
        assert_eq!(removed.id, id);
        members = after;
    }
    assert_eq!(members.removed_ids, [1, 3]);
    assert!(conflict(members::remove(&members, 2)).contains("last voter"));
    let members = changed(members::remove(&members, 4)).1;
    assert_eq!(members.removed_ids, [1, 3, 4]);
    assert_eq!(not_found(members::remove(&members, 4)), 4);
}

#[test]
fn an_incarnation_is_bound_once() {
    let members = with_learner();
    assert_eq!(not_found(binding(&members, 8, 1)), 8);
    assert!(conflict(binding(&members, 4, 0)).contains("at least 1"));
    let (bound, after) = changed(binding(&members, 4, 44));
    assert_eq!(bound.incarnation, 44);
    assert_eq!(unchanged(binding(&after, 4, 44)), bound);
    let why = conflict(binding(&after, 4, 45));
    assert_eq!(
        why,
        "id 4 is bound to another incarnation: its data is gone; \
         remove member 4 and add it again under a new id"
    );
}

#[test]
fn urls_are_set_for_known_members_and_peer_urls_stay_unique() {
    let members = with_learner();
    let client = |id: u64, url: &str| {
        members::set_client_url(&members, &SetClientUrl { id, client_url: url.into() })
    };
    assert_eq!(not_found(client(8, "http://a:1")), 8);
    let (set, after) = changed(client(2, "http://a:1"));
    assert_eq!(set.client_url, "http://a:1");
    assert_eq!(member(&after, 2), Some(&set));
    assert_eq!(unchanged(client(2, "")), members.members[1]);

    let peer =
        |id: u64, url: String| members::set_peer_url(&members, &SetPeerUrl { id, peer_url: url });
    assert_eq!(not_found(peer(8, url(8))), 8);
    assert_eq!(unchanged(peer(2, url(2))), members.members[1]);
    assert!(conflict(peer(2, url(4))).contains("in use by member 4"));
    assert_eq!(changed(peer(2, url(8))).0.peer_url, url(8));
}
