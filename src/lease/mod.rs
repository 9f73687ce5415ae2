//! The lease keeper: the leader's clock of every lease.
//!
//! A [`Keeper`] takes [`Event`]s and gives [`Effect`]s, like
//! [`Replica`](crate::replica::Replica): no clock, no thread, no disk. Time
//! enters as ticks. What is replicated about a lease is its
//! [`LeaseRecord`](crate::proto::LeaseRecord); that it is running out is known
//! to the leader alone, and this module is the leader's part.
//!
//! # What clients may rely on
//!
//! * **Never early.** Once a keep-alive has been answered, the lease lives for
//!   its full time from the moment the request *arrived* at the leader, and for
//!   as long as the same member leads, from the moment of the answer. No
//!   leader change, pause, stall or message that comes late shortens it.
//! * **Not for ever.** While one member leads and has a quorum, a lease that
//!   nobody renews is gone at most its time, [`SLACK_TICKS`], one confirmation
//!   and its place in the queue of expiries ([`EXPIRED_PER_SECOND`]) later. A
//!   leader change gives back no more than what was not yet written down: half
//!   the time or 60 s for a lease that ran from full, then an eighth of it, at
//!   least 1 s and at most 60 s; and the time without a leader.
//!
//! # Time
//!
//! `now` counts the ticks that were delivered. A tick that was not delivered
//! (the process was paused, the thread starved) never passed: every lease gets
//! the gap as a gift. Ticks that are late come one by one and never in a burst;
//! between any two moments there are at most [`SLACK_TICKS`] more of them than
//! whole tick lengths, and every expiry waits for that many more.
//!
//! # Four things in the log
//!
//! `renewal` grows whenever a lease gets its full time back *through the log*.
//! An expiry and a checkpoint name the `renewal` they saw and the term of the
//! leader that saw it. They are void for a lease with another `renewal`, and
//! altogether void in an entry of another term. `RenewLeases` names neither:
//! full time is never wrong.
//!
//! Most renewals never reach the log: the keeper moves its own deadline and
//! nothing else. That is safe exactly while nothing the next leader could find
//! is less than full time:
//!
//! * the record has its full time (no checkpoint took any), and
//! * no expiry or checkpoint that names the present `renewal` can still be
//!   applied: none is in flight, and none is of unknown fate.
//!
//! Otherwise the keep-alive is answered only after a `RenewLeases` was applied,
//! whose new `renewal` makes everything void that was under way.
//!
//! # Every interleaving
//!
//! *Keep-alive and leader change.* A request is answered after a round of
//! confirmations (ReadIndex) that began after the request had arrived. So a
//! quorum took this member for its leader after the arrival, and any later
//! leader was elected after it. That one starts its clock later still: once a
//! round of its own term is confirmed and applied here, which means that all
//! entries of former terms are. It gives the lease what the record says. That
//! is full time (the rule above), or what a checkpoint says which the former
//! leader proposed *after* the renewal. Its time counted down from the renewal
//! and was rounded up, and the new clock starts after it was proposed: not
//! early. A keeper that lost its leadership meanwhile has no round to confirm
//! in the new term; it answers "not the leader", and the request goes on to
//! the new one: renewing twice is renewing.
//!
//! *Keep-alive and expiry.* While a keep-alive waits, its lease is not proposed
//! for expiry however late the answer is. If the expiry was proposed before the
//! request arrived, the renewal follows it in the log and finds no lease: the
//! answer is that it does not exist, and that is the truth. If the expiry does
//! not make it into the log, the renewal finds the lease.
//!
//! *Keep-alive and checkpoint.* A checkpoint in flight makes the keep-alive go
//! through the log. Whichever is applied first, the lease ends with full time:
//! the renewal after the checkpoint overwrites it, the checkpoint after the
//! renewal names an old `renewal`. A checkpoint of unknown fate counts as in
//! flight until the lease's `renewal` changes.
//!
//! *Expiry and an older term.* What an old leader had in its log before the new
//! one was elected is applied before the new clock starts. What it has
//! appended since is never committed. What its keeper had only queued is void
//! by its term, also when the same member leads again.
//!
//! *Expiry and a lost quorum.* Before an expiry is proposed, a round that began
//! after the deadline must be confirmed. So a leader without a quorum proposes
//! none, and what clients asked meanwhile is served before. If the round took
//! long, nobody is expired for as long again, once, so that clients that could
//! not get through have the time they lost. If the quorum stays away for an
//! election timeout, the leader steps down and the next one starts from the
//! records.
//!
//! *Grant, revoke, grant again under the same id.* The table follows
//! [`LeaseChange`](crate::machine::LeaseChange)s in the order of the log; a
//! lease that is gone takes its deadline and what was under way with it. A
//! confirmation and the fate of a proposal are delivered after everything that
//! was applied before them, so "there is no such lease" is never said of one
//! whose grant was acknowledged. That an expiry of the first lease does not hit
//! the second is the state machine's part: a grant must give a `renewal` that
//! the id never had.
//!
//! *Changes that were lost* (the queue from the apply thread was full, a
//! snapshot replaced the state) are made good by reading all leases again. The
//! reading is of one moment, with its log index; changes up to it are ignored,
//! later ones count. A lease whose `renewal` is as before keeps its deadline.
//! Meanwhile nothing is answered and nothing expires.
//!
//! *Proposals that fail* are proposed again if there is still reason to; those
//! of unknown fate too, because each of them may be applied twice.
//!
//! # Cost
//!
//! A renewal is a look-up and a new number. A lease has one place in each of
//! two ordered sets, and a renewal that moves its deadline leaves it at its old
//! place, to be moved when its turn comes. Every batch, round and queue is
//! bounded by a constant of this module.

mod event;
mod keeper;
mod requests;
mod schedule;
mod table;
mod time;

#[cfg(test)]
mod tests;

pub use event::{Effect, Event, Fate, Question, Reply};
pub use keeper::{Keeper, Options};
pub use requests::MAX_WAITING;

/// Ticks by which every expiry is put off, because ticks do not come exactly
/// one length apart: one may be late, one may have waited to be taken in, and
/// the moment of a renewal lies between two.
pub const SLACK_TICKS: u64 = 3;

/// Leases whose expiry is proposed in one second at most, so that a storm of
/// them leaves the log to others.
pub const EXPIRED_PER_SECOND: u64 = 5000;

/// Leases in one command at most.
pub const MAX_BATCH: usize = 1000;
