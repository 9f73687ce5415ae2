//! No lease ends before its time.

use super::{Store, Time, order::Sightings};
use crate::Figures;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// One lease that nobody revoked, with one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseLife {
    /// Its id.
    pub id: i64,
    /// Its key, which no other lease ever had.
    pub key: String,
    /// Whether the key was acknowledged to be attached.
    pub attached: bool,
    /// For each grant and renewal that was acknowledged: when it was asked
    /// for, and for how many seconds from then on it must last.
    pub renewals: Vec<(Time, u64)>,
    /// When it was seen not to be any more, if it was.
    pub gone: Option<Time>,
}

/// Checks all leases.
pub fn check(leases: &[LeaseLife], store: &Store, sightings: &Sightings, figures: &Figures) {
    for life in leases {
        let deletion = store.deletion(&life.key);
        let deleted = deletion.and_then(|revision| sightings.first(revision));
        let seen = deleted.into_iter().chain(life.gone).min();
        let until = |(from, seconds): &(Time, u64)| from + seconds * NANOS_PER_SECOND;
        let promised = life.renewals.iter().map(until).max();
        if let (Some(seen), Some(promised)) = (seen, promised)
            && seen < promised
        {
            let early = (promised - seen) as f64 / NANOS_PER_SECOND as f64;
            figures.violation(format!("a lease ended {early:.3} s early: {life:?}"));
        }
        if life.attached && deletion.is_none() {
            figures.violation(format!("a lease that nobody renews has not ended: {life:?}"));
        }
        figures.count("leases", 1);
    }
}
