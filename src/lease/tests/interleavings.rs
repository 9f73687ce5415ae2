//! What may happen between a question and its answer, one script each.

use super::*;
use crate::{
    error::Rejected,
    lease::MAX_WAITING,
    proto::{CheckpointLeases, ExpireLeases, LeaseRenewal, RenewLeases},
};

fn expiry(leases: &[(i64, u64)]) -> Op {
    let leases =
        leases.iter().map(|&(id, renewal)| LeaseRenewal { id, renewal, remaining_s: 0 }).collect();
    Op::ExpireLeases(ExpireLeases { term: TERM, leases })
}

fn checkpoint(id: i64, renewal: u64, remaining_s: i64) -> Op {
    let leases = vec![LeaseRenewal { id, renewal, remaining_s }];
    Op::CheckpointLeases(CheckpointLeases { term: TERM, leases })
}

fn why() -> Rejected {
    Rejected::NotApplied("no quorum".to_owned())
}

#[test]
fn a_member_that_does_not_lead_says_so() {
    let mut rig = Rig::idle();
    let ticket = rig.keep_alive(7);
    assert_eq!(rig.reply(ticket), Reply::NotLeader);
    rig.ticks(100);
    rig.nothing();
}

#[test]
fn the_clocks_start_after_a_confirmed_round_of_the_term_and_a_reading() {
    let mut rig = Rig::idle();
    rig.handle(Event::Leads(Some(TERM)));
    let round = rig.confirm();
    rig.seconds(100);
    rig.nothing();
    rig.handle(Event::Unconfirmed(round, why()));
    rig.nothing();
    rig.ticks(1);
    let round = rig.confirm();
    rig.handle(Event::Confirmed(round));
    rig.load(&[record(7, 10)]);
    rig.nothing();
    assert_eq!(rig.answered(7, Question::TimeToLive), left(10, 10));
}

#[test]
fn a_new_leader_gives_each_lease_what_its_record_says() {
    let checkpointed = LeaseRecord { remaining_s: 3, ..record(8, 10) };
    let mut rig = Rig::leader(&[record(7, 10), checkpointed]);
    assert_eq!(rig.answered(8, Question::TimeToLive), left(10, 3));
    rig.seconds(1);
    rig.take();
    assert_eq!(rig.answered(8, Question::TimeToLive), left(10, 2));
    assert_eq!(rig.answered(7, Question::TimeToLive), left(10, 9));
    assert_eq!(rig.answered(9, Question::TimeToLive), unknown());
}

#[test]
fn a_keep_alive_is_answered_after_a_round_that_began_after_it() {
    let mut rig = Rig::leader(&[record(7, 10)]);
    let first = rig.keep_alive(7);
    let round = rig.confirm();
    let second = rig.keep_alive(7);
    let next = rig.confirm();
    rig.handle(Event::Confirmed(round));
    assert_eq!(rig.reply(first), alive(10));
    rig.handle(Event::Confirmed(next));
    assert_eq!(rig.reply(second), alive(10));
}

#[test]
fn questions_share_rounds_when_many_are_under_way() {
    let mut rig = Rig::leader(&[record(7, 10)]);
    for _ in 0..100 {
        rig.keep_alive(7);
    }
    let rounds = rig.take();
    assert_eq!(rounds.len(), 4);
    let Effect::Confirm(first) = rounds[0] else { panic!("{rounds:?}") };
    rig.handle(Event::Confirmed(first));
    let [Effect::Reply(1, _), Effect::Confirm(last)] = rig.take()[..] else { panic!("a round") };
    rig.handle(Event::Confirmed(last));
    assert_eq!(rig.take().len(), 96);
}

#[test]
fn an_unconfirmed_round_answers_with_its_reason() {
    let mut rig = Rig::leader(&[record(7, 10)]);
    let ticket = rig.keep_alive(7);
    let round = rig.confirm();
    rig.handle(Event::Unconfirmed(round, why()));
    assert_eq!(rig.reply(ticket), Reply::Rejected(why()));
    assert_eq!(rig.keeper.requests().waiting(), (0, 0));
}

#[test]
fn a_lease_expires_after_its_time_and_a_round_that_began_then() {
    let mut rig = Rig::leader(&[record(7, 1)]);
    rig.ticks(TICKS_A_SECOND + SLACK_TICKS - 1);
    rig.nothing();
    rig.ticks(1);
    let round = rig.confirm();
    rig.handle(Event::Confirmed(round));
    let (number, op) = rig.proposal();
    assert_eq!(op, expiry(&[(7, 1)]));
    rig.seconds(1);
    rig.nothing();
    rig.applied(&[LeaseChange::Gone(7)]);
    rig.resolved(number, Fate::Applied);
    assert_eq!(rig.answered(7, Question::KeepAlive), unknown());
    assert_eq!(rig.keeper.table().len(), (0, 0, 0));
}

#[test]
fn a_round_that_began_before_a_lease_was_due_does_not_expire_it() {
    let mut rig = Rig::leader(&[record(7, 1)]);
    rig.ticks(2);
    rig.set(record(8, 1));
    rig.ticks(TICKS_A_SECOND + SLACK_TICKS - 2);
    let round = rig.confirm();
    rig.ticks(2);
    rig.handle(Event::Confirmed(round));
    assert_eq!(rig.proposal().1, expiry(&[(7, 1)]));
}

#[test]
fn while_a_keep_alive_waits_its_lease_does_not_expire() {
    let mut rig = Rig::leader(&[record(7, 1)]);
    let ticket = rig.keep_alive(7);
    let round = rig.confirm();
    rig.seconds(10);
    rig.nothing();
    rig.handle(Event::Confirmed(round));
    assert_eq!(rig.reply(ticket), alive(1));
    rig.ticks(TICKS_A_SECOND + SLACK_TICKS - 1);
    rig.nothing();
    rig.ticks(1);
    rig.confirm();
}

#[test]
fn a_keep_alive_saves_a_lease_whose_expiry_waits_for_its_round() {
    let mut rig = Rig::leader(&[record(7, 1)]);
    rig.ticks(TICKS_A_SECOND + SLACK_TICKS);
    let for_expiry = rig.confirm();
    let ticket = rig.keep_alive(7);
    let round = rig.confirm();
    rig.handle(Event::Confirmed(for_expiry));
    rig.nothing();
    rig.handle(Event::Confirmed(round));
    assert_eq!(rig.reply(ticket), alive(1));
}

#[test]
fn after_a_lost_quorum_clients_have_the_time_they_lost() {
    let mut rig = Rig::leader(&[record(7, 1)]);
    rig.ticks(TICKS_A_SECOND + SLACK_TICKS);
    let round = rig.confirm();
    rig.ticks(9);
    rig.handle(Event::Confirmed(round));
    rig.ticks(8);
    rig.nothing();
    // A client comes through in time.
    assert_eq!(rig.answered(7, Question::KeepAlive), alive(1));
    rig.ticks(TICKS_A_SECOND + SLACK_TICKS - 1);
    rig.nothing();
    rig.ticks(1);
    // The grace is given once, however slow the rounds stay.
    let round = rig.confirm();
    rig.ticks(9);
    rig.handle(Event::Confirmed(round));
    assert_eq!(rig.proposal().1, expiry(&[(7, 1)]));
}

#[test]
fn a_keep_alive_behind_an_expiry_goes_through_the_log() {
    let mut rig = Rig::leader(&[record(7, 1)]);
    let expiring = rig.expire_after(1);
    let ticket = rig.keep_alive(7);
    let round = rig.confirm();
    rig.handle(Event::Confirmed(round));
    let (renewing, op) = rig.proposal();
    assert_eq!(op, Op::RenewLeases(RenewLeases { ids: vec![7] }));
    // The expiry comes first in the log.
    rig.applied(&[LeaseChange::Gone(7)]);
    rig.resolved(expiring, Fate::Applied);
    rig.nothing();
    rig.resolved(renewing, Fate::Applied);
    assert_eq!(rig.reply(ticket), unknown());
}

#[test]
fn an_expiry_that_never_happened_leaves_a_lease_to_renew() {
    for fate in [Fate::NotApplied, Fate::Unknown] {
        let mut rig = Rig::leader(&[record(7, 1)]);
        let expiring = rig.expire_after(1);
        let ticket = rig.keep_alive(7);
        let round = rig.confirm();
        rig.handle(Event::Confirmed(round));
        let (renewing, _) = rig.proposal();
        rig.resolved(expiring, fate);
        rig.set(LeaseRecord { renewal: 11, ..record(7, 1) });
        rig.resolved(renewing, Fate::Applied);
        assert_eq!(rig.reply(ticket), alive(1));
        // The new renewal makes void whatever there is of the expiry.
        assert_eq!(rig.answered(7, Question::KeepAlive), alive(1));
    }
}

#[test]
fn an_expiry_of_unknown_fate_is_tried_again_and_taints_the_lease() {
    let mut rig = Rig::leader(&[record(7, 1)]);
    let expiring = rig.expire_after(1);
    rig.resolved(expiring, Fate::Unknown);
    rig.ticks(1);
    let round = rig.confirm();
    rig.handle(Event::Confirmed(round));
    let (again, op) = rig.proposal();
    assert_eq!(op, expiry(&[(7, 1)]));
    rig.resolved(again, Fate::NotApplied);
    let ticket = rig.keep_alive(7);
    let round = rig.confirm();
    rig.handle(Event::Confirmed(round));
    let (renewing, op) = rig.proposal();
    assert!(matches!(op, Op::RenewLeases(_)), "the first may yet be applied: {op:?}");
    rig.applied(&[LeaseChange::Gone(7)]);
    rig.resolved(renewing, Fate::Applied);
    assert_eq!(rig.reply(ticket), unknown());
}

#[test]
fn a_lease_that_is_not_renewed_is_checkpointed_at_half_time_and_then_by_eighths() {
    let mut rig = Rig::leader(&[record(7, 32)]);
    rig.seconds(15);
    rig.nothing();
    rig.seconds(1);
    let (number, op) = rig.proposal();
    assert_eq!(op, checkpoint(7, 1, 16));
    rig.set(LeaseRecord { remaining_s: 16, ..record(7, 32) });
    rig.resolved(number, Fate::Applied);
    rig.ticks(4 * TICKS_A_SECOND - 1);
    rig.nothing();
    rig.ticks(1);
    assert_eq!(rig.proposal().1, checkpoint(7, 1, 12));
}

#[test]
fn a_long_lease_is_checkpointed_every_minute() {
    let mut rig = Rig::leader(&[record(7, 10_000)]);
    rig.seconds(59);
    rig.nothing();
    rig.seconds(1);
    let (number, op) = rig.proposal();
    assert_eq!(op, checkpoint(7, 1, 9_940));
    rig.set(LeaseRecord { remaining_s: 9_940, ..record(7, 10_000) });
    rig.resolved(number, Fate::Applied);
    rig.seconds(60);
    assert_eq!(rig.proposal().1, checkpoint(7, 1, 9_880));
}

#[test]
fn a_lease_that_is_kept_alive_is_never_checkpointed() {
    let mut rig = Rig::leader(&[record(7, 30)]);
    for _ in 0..100 {
        rig.seconds(10);
        assert_eq!(rig.answered(7, Question::KeepAlive), alive(30));
    }
}

#[test]
fn a_checkpoint_in_flight_or_applied_sends_the_keep_alive_through_the_log() {
    for applied_first in [true, false] {
        let mut rig = Rig::leader(&[record(7, 10)]);
        rig.seconds(5);
        let (checkpointing, _) = rig.proposal();
        if applied_first {
            rig.set(LeaseRecord { remaining_s: 5, ..record(7, 10) });
            rig.resolved(checkpointing, Fate::Applied);
        }
        let ticket = rig.keep_alive(7);
        let round = rig.confirm();
        rig.handle(Event::Confirmed(round));
        let (renewing, op) = rig.proposal();
        assert_eq!(op, Op::RenewLeases(RenewLeases { ids: vec![7] }));
        if !applied_first {
            rig.set(LeaseRecord { remaining_s: 5, ..record(7, 10) });
            rig.resolved(checkpointing, Fate::Applied);
        }
        rig.set(LeaseRecord { renewal: 11, ..record(7, 10) });
        rig.nothing();
        rig.resolved(renewing, Fate::Applied);
        assert_eq!(rig.reply(ticket), alive(10));
        assert_eq!(rig.answered(7, Question::KeepAlive), alive(10));
    }
}

#[test]
fn a_checkpoint_of_unknown_fate_taints_until_the_next_renewal_in_the_log() {
    let mut rig = Rig::leader(&[record(7, 10)]);
    rig.seconds(5);
    let (checkpointing, _) = rig.proposal();
    rig.resolved(checkpointing, Fate::Unknown);
    let ticket = rig.keep_alive(7);
    let round = rig.confirm();
    rig.handle(Event::Confirmed(round));
    let (renewing, _) = rig.proposal();
    rig.set(LeaseRecord { renewal: 11, ..record(7, 10) });
    rig.resolved(renewing, Fate::Applied);
    assert_eq!(rig.reply(ticket), alive(10));
    assert_eq!(rig.answered(7, Question::KeepAlive), alive(10));
}

#[test]
fn renewals_in_the_log_that_wait_share_the_next_command() {
    let half = |id| LeaseRecord { remaining_s: 5, ..record(id, 10) };
    let leases: Vec<_> = (1..=2000).map(half).collect();
    let mut rig = Rig::leader(&leases);
    let first = rig.keep_alive(1);
    let round = rig.confirm();
    rig.handle(Event::Confirmed(round));
    let (renewing, _) = rig.proposal();
    for id in 1..=2000 {
        rig.ticket += 1;
        let ask = Event::Ask { ticket: rig.ticket, id, question: Question::KeepAlive };
        rig.keeper.handle(ask, &mut rig.effects);
    }
    rig.keeper.flush(&mut rig.effects);
    let round = rig.confirm();
    rig.handle(Event::Confirmed(round));
    rig.nothing();
    rig.set(LeaseRecord { renewal: 11, ..record(1, 10) });
    rig.resolved(renewing, Fate::Applied);
    let effects = rig.take();
    let [Effect::Reply(to, reply), Effect::Propose(_, Op::RenewLeases(next))] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!((*to, reply), (first, &alive(10)));
    assert_eq!(next.ids, (1..=1000).collect::<Vec<_>>());
}

#[test]
fn a_renewal_that_fails_is_told_and_harms_nothing() {
    for (fate, safe) in [(Fate::NotApplied, true), (Fate::Unknown, false)] {
        let mut rig = Rig::leader(&[LeaseRecord { remaining_s: 5, ..record(7, 10) }]);
        let ticket = rig.keep_alive(7);
        let round = rig.confirm();
        rig.handle(Event::Confirmed(round));
        let (renewing, _) = rig.proposal();
        rig.resolved(renewing, fate);
        let Reply::Rejected(rejected) = rig.reply(ticket) else { panic!("it is not renewed") };
        assert_eq!(matches!(rejected, Rejected::Overloaded(_)), safe);
        assert_eq!(rig.keeper.requests().waiting(), (0, 0));
    }
}

#[test]
fn the_loss_of_leadership_ends_everything_and_its_late_answers_mean_nothing() {
    let mut rig = Rig::leader(&[record(7, 1), LeaseRecord { remaining_s: 5, ..record(8, 10) }]);
    let expiring = rig.expire_after(1);
    let waiting = rig.keep_alive(7);
    let round = rig.confirm();
    let renewed = rig.keep_alive(8);
    let other = rig.confirm();
    rig.handle(Event::Confirmed(other));
    let (renewing, _) = rig.proposal();
    rig.handle(Event::Leads(None));
    let mut told: Vec<_> = rig.take();
    told.sort_by_key(|effect| if let Effect::Reply(ticket, _) = effect { *ticket } else { 0 });
    let not_leader = |ticket| Effect::Reply(ticket, Reply::NotLeader);
    assert_eq!(told, [not_leader(waiting), not_leader(renewed)]);
    rig.handle(Event::Confirmed(round));
    rig.resolved(renewing, Fate::Applied);
    rig.resolved(expiring, Fate::Unknown);
    rig.seconds(100);
    rig.nothing();
    // The next term of the same member begins from the records.
    rig.lead(TERM + 2, &[record(7, 1)]);
    rig.handle(Event::Confirmed(round));
    rig.nothing();
    assert_eq!(rig.answered(7, Question::TimeToLive), left(1, 1));
}

#[test]
fn a_term_that_was_never_seen_to_end_still_starts_anew() {
    let mut rig = Rig::leader(&[record(7, 10)]);
    let ticket = rig.keep_alive(7);
    let old = rig.confirm();
    rig.handle(Event::Leads(Some(TERM + 2)));
    let effects = rig.take();
    let [Effect::Reply(to, Reply::NotLeader), Effect::Confirm(opening)] = effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(to, ticket);
    // A round of the old term opens nothing.
    rig.handle(Event::Confirmed(old));
    rig.nothing();
    rig.handle(Event::Confirmed(opening));
    rig.load(&[]);
}

#[test]
fn a_reading_of_an_older_term_is_not_taken_for_the_new_one() {
    let mut rig = Rig::idle();
    rig.handle(Event::Leads(Some(TERM)));
    let round = rig.confirm();
    rig.handle(Event::Confirmed(round));
    let [Effect::Load(old)] = rig.take()[..] else { panic!("no reading") };
    rig.handle(Event::Leads(Some(TERM + 1)));
    let round = rig.confirm();
    rig.handle(Event::Confirmed(round));
    let [Effect::Load(new)] = rig.take()[..] else { panic!("no reading") };
    rig.handle(Event::Loaded { load: old, index: 10, leases: vec![record(7, 1)] });
    assert_eq!(rig.keeper.table().len().0, 0);
    rig.handle(Event::Loaded { load: new, index: 12, leases: vec![record(8, 1)] });
    assert_eq!(rig.answered(7, Question::TimeToLive), unknown());
}

#[test]
fn changes_up_to_the_reading_are_ignored_and_later_ones_count() {
    let mut rig = Rig::leader(&[record(7, 10)]);
    let gone = vec![LeaseChange::Gone(7)];
    rig.handle(Event::Applied { index: rig.index, changes: gone.clone() });
    assert_eq!(rig.answered(7, Question::TimeToLive), left(10, 10));
    rig.handle(Event::Applied { index: rig.index + 1, changes: gone });
    assert_eq!(rig.answered(7, Question::TimeToLive), unknown());
}

#[test]
fn lost_changes_are_read_again_without_moving_deadlines() {
    let mut rig = Rig::leader(&[record(7, 10), record(8, 10), record(9, 10)]);
    rig.seconds(4);
    let waiting = rig.keep_alive(7);
    let round = rig.confirm();
    rig.handle(Event::Lost);
    let [Effect::Load(load)] = rig.take()[..] else { panic!("no reading") };
    // Nothing is answered from a table with holes.
    rig.handle(Event::Confirmed(round));
    rig.nothing();
    // Lease 8 is gone, and 9 was granted again under the same id.
    let leases = vec![record(7, 10), LeaseRecord { renewal: 15, ..record(9, 20) }];
    rig.handle(Event::Loaded { load, index: 20, leases });
    let round = rig.confirm();
    assert_eq!(rig.answered(7, Question::TimeToLive), left(10, 6));
    assert_eq!(rig.answered(8, Question::TimeToLive), unknown());
    assert_eq!(rig.answered(9, Question::TimeToLive), left(20, 20));
    rig.handle(Event::Confirmed(round));
    assert_eq!(rig.reply(waiting), alive(10));
}

#[test]
fn a_lease_granted_again_under_its_id_starts_anew() {
    let mut rig = Rig::leader(&[record(7, 1)]);
    let expiring = rig.expire_after(1);
    let again = LeaseRecord { renewal: 12, ..record(7, 2) };
    rig.applied(&[LeaseChange::Gone(7), LeaseChange::Set(again)]);
    rig.resolved(expiring, Fate::Applied);
    assert_eq!(rig.answered(7, Question::KeepAlive), alive(2));
    rig.ticks(2 * TICKS_A_SECOND);
    let [Effect::Propose(..)] = rig.take()[..] else { panic!("no checkpoint at half time") };
}

#[test]
fn ticks_that_never_came_extend_every_lease() {
    let mut rig = Rig::leader(&[record(7, 10)]);
    // However long the process stood still, it is one tick.
    rig.ticks(1);
    assert_eq!(rig.answered(7, Question::TimeToLive), left(10, 9));
}

#[test]
fn too_many_questions_are_refused_and_answered_ones_make_room() {
    let mut rig = Rig::leader(&[record(7, 10)]);
    for _ in 0..MAX_WAITING {
        rig.ask(7, Question::TimeToLive);
    }
    let rounds = rig.take();
    let refused = rig.keep_alive(7);
    assert!(matches!(rig.reply(refused), Reply::Rejected(Rejected::Overloaded(_))));
    for round in rounds {
        if let Effect::Confirm(round) = round {
            rig.handle(Event::Confirmed(round));
        }
    }
    rig.take();
    assert_eq!(rig.keeper.requests().waiting().1, 0, "the refused one left no trace");
    rig.keep_alive(7);
    assert_eq!(rig.keeper.requests().waiting().1, 1);
}
