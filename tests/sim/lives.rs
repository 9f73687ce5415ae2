//! How long leases live, and how long they were promised to.

use std::collections::BTreeMap;

use metastore::lease::SLACK_TICKS;

use super::plan::{SECOND, TICK, Time};

/// The shortest time that the clock of any leader takes for so many seconds:
/// clocks run up to a tenth off.
fn shortest(seconds: i64) -> Time {
    seconds.unsigned_abs() * SECOND / 10 * 9
}

/// One life of a lease, from its grant to its end.
#[derive(Debug)]
struct Life {
    born: Time,
    ttl_s: i64,
    /// It must not expire before.
    promised: Time,
    /// In this term it must not expire before.
    promised_by: (u64, Time),
    /// When it ended, and whether it expired.
    died: Option<(Time, bool)>,
}

impl Life {
    fn includes(&self, moment: Time) -> bool {
        self.born < moment && self.died.is_none_or(|(died, _)| died > moment)
    }
}

/// All lives of all leases.
#[derive(Default)]
pub struct Lives(BTreeMap<i64, Vec<Life>>);

impl Lives {
    pub fn begin(&mut self, now: Time, id: i64, ttl_s: i64) {
        let promised = now + shortest(ttl_s);
        let life = Life { born: now, ttl_s, promised, promised_by: (0, 0), died: None };
        self.0.entry(id).or_default().push(life);
    }

    /// A lease ended: it expired in this term, or was revoked.
    pub fn end(&mut self, now: Time, id: i64, expired: Option<u64>) {
        let life = self.0.get_mut(&id).and_then(|lives| lives.last_mut());
        let life = life.expect("what ends has begun");
        if let Some(term) = expired {
            assert!(now >= life.promised, "lease {id} expired early, at {now}: {life:?}");
            let (promised_in, until) = life.promised_by;
            assert!(
                promised_in != term || now >= until,
                "lease {id} expired early in term {term}, at {now}: {life:?}"
            );
        }
        life.died = Some((now, expired.is_some()));
    }

    /// Of a lease only so much is left, for the next leader to count from. That
    /// must be enough for what was promised, but for the ticks that every
    /// expiry waits longer.
    pub fn written_down(&self, now: Time, id: i64, remaining_s: i64) {
        let life = self.0.get(&id).and_then(|lives| lives.last());
        let life = life.expect("what is written down has begun");
        let until = now + shortest(remaining_s) + SLACK_TICKS * TICK;
        assert!(until >= life.promised, "lease {id} is to end at {until}: {life:?}");
    }

    /// A keep-alive that had arrived then is answered now, by the leader of a
    /// term, with ticks of this length.
    pub fn promised(&mut self, (now, arrived): (Time, Time), (term, tick): (u64, Time), id: i64) {
        let lives = self.0.entry(id).or_default();
        // Granted again since, it may be the later life that was renewed.
        let granted_since = lives.iter().any(|life| life.born >= arrived);
        let Some(life) = lives.iter_mut().find(|life| life.includes(arrived)) else {
            assert!(granted_since, "lease {id} was gone at {arrived} and was said to exist");
            return;
        };
        let until = arrived + shortest(life.ttl_s);
        life.promised = life.promised.max(until);
        let ticks = life.ttl_s.unsigned_abs() * (SECOND / TICK);
        life.promised_by = (term, now + ticks * tick);
        if let Some((died, true)) = life.died
            && !granted_since
        {
            assert!(died >= until, "lease {id}, renewed at {arrived}, had expired: {life:?}");
        }
    }

    /// A question that had arrived then is answered with "no such lease".
    pub fn said_absent(&mut self, id: i64, arrived: Time) {
        let lives = self.0.get(&id).into_iter().flatten();
        for life in lives.filter(|life| life.includes(arrived)) {
            assert!(life.died.is_some(), "lease {id} was said not to exist: {life:?}");
        }
    }
}
