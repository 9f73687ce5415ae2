//! Many leases.

use super::*;
use crate::lease::{EXPIRED_PER_SECOND, MAX_BATCH};

const MANY: i64 = 100_000;

#[test]
fn a_storm_of_expiries_is_proposed_at_a_bounded_rate() {
    let leases: Vec<_> = (1..=MANY).map(|id| record(id, 1)).collect();
    let mut rig = Rig::leader(&leases);
    rig.ticks(TICKS_A_SECOND + SLACK_TICKS);
    let per_tick = (EXPIRED_PER_SECOND / TICKS_A_SECOND) as usize;
    let mut gone = 0;
    let mut ticks = 0;
    while gone < MANY as usize {
        let before = gone;
        loop {
            let effects = rig.take();
            let Some(effect) = effects.first() else { break };
            match effect {
                Effect::Confirm(round) => rig.handle(Event::Confirmed(*round)),
                Effect::Propose(number, Op::ExpireLeases(expire)) => {
                    assert!(expire.leases.len() <= MAX_BATCH);
                    gone += expire.leases.len();
                    let changes: Vec<_> =
                        expire.leases.iter().map(|l| LeaseChange::Gone(l.id)).collect();
                    let number = *number;
                    rig.applied(&changes);
                    // Applied alone begins nothing: one proposal at a time.
                    rig.nothing();
                    rig.resolved(number, Fate::Applied);
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(gone - before <= per_tick, "{} in one tick", gone - before);
        ticks += 1;
        rig.ticks(1);
    }
    assert_eq!(ticks, MANY as usize / per_tick);
    assert_eq!(rig.keeper.table().len(), (0, 0, 0));
}

#[test]
fn renewals_and_grants_leave_nothing_behind() {
    let mut rig = Rig::leader(&[record(1, 1 << 30)]);
    for round in 0..1000 {
        rig.applied(&[LeaseChange::Set(LeaseRecord { renewal: 20 + round, ..record(2, 1 << 20) })]);
        assert_eq!(rig.answered(1, Question::KeepAlive), alive(1 << 30));
        assert_eq!(rig.answered(2, Question::KeepAlive), alive(1 << 20));
        rig.applied(&[LeaseChange::Gone(2)]);
        rig.ticks(1);
    }
    assert_eq!(rig.keeper.table().len(), (1, 1, 1));
}

#[test]
fn an_idle_tick_over_many_leases_looks_at_none() {
    let leases: Vec<_> = (1..=MANY).map(|id| record(id, 1 << 20)).collect();
    let mut rig = Rig::leader(&leases);
    let begun = std::time::Instant::now();
    rig.ticks(TICKS_A_SECOND * 59);
    rig.nothing();
    // Even one look at each lease in each tick would take seconds.
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
}
