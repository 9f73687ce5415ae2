//! What kind of run a seed stands for.

use super::dice::Dice;

/// Virtual time is counted in microseconds from the start of the run.
pub type Time = u64;
pub const MS: Time = 1_000;
pub const SECOND: Time = 1_000 * MS;

/// Nominal length of a tick; each node's own clock runs up to a tenth off it.
pub const TICK: Time = 100 * MS;
/// Ticks without a leader before a follower stands for election.
pub const ELECTION_TICKS: usize = 10;
/// The nominal election timeout.
pub const ELECTION: Time = ELECTION_TICKS as Time * TICK;
/// How soon after the last fault a write must have committed.
pub const RECOVERY: Time = 10 * ELECTION;
/// How soon after that all members must have become equal.
pub const CONVERGENCE: Time = 30 * ELECTION;

/// The fixed traits of one run, drawn from its seed.
#[derive(Debug, Clone)]
pub struct Plan {
    pub founders: u64,
    /// No member is removed when only so many are left.
    pub least_members: usize,
    pub clients: usize,
    pub etcd_clients: usize,
    pub watchers: usize,
    pub keys: u64,
    pub snapshot_count: u64,
    pub max_entry_bytes: usize,
    /// Bytes of its log that a member keeps in memory once they are durable.
    pub cache_bytes: usize,
    /// Bound of the queues to disk and state machine.
    pub max_waiting_bytes: usize,
    /// Of a hundred faults, so many are changes of membership.
    pub changes: u64,
    /// Of a hundred others, so many are transfers of leadership.
    pub transfers: u64,
    /// Of a thousand requests of etcd's clients, so many are questions about
    /// leases.
    pub lease_questions: u64,
    /// How long faults are injected.
    pub chaos: Time,
    /// Longest pause between two faults.
    pub fault_pause: Time,
    /// Of a thousand messages, so many are lost, sent twice, held up for long.
    pub lost: u64,
    pub doubled: u64,
    pub held_up: u64,
    /// Longest delay of an ordinary message.
    pub delay: Time,
    /// Longest service time of an ordinary write.
    pub disk: Time,
    /// Longest service time of an ordinary apply.
    pub apply: Time,
    /// Longest time a client thinks between two requests.
    pub think: Time,
    /// Longest pause between two marks.
    pub mark_pause: Time,
}

impl Plan {
    pub fn new(dice: &mut Dice) -> Self {
        Self {
            founders: dice.pick(&[1, 2, 3, 3, 3, 3, 5, 5, 5]),
            least_members: dice.pick(&[1, 3, 3]),
            clients: dice.between(2, 8) as usize,
            etcd_clients: dice.between(1, 4) as usize,
            watchers: dice.between(1, 3) as usize,
            keys: dice.between(1, 5),
            snapshot_count: dice.pick(&[8, 30, 100, 400]),
            max_entry_bytes: dice.pick(&[300, 4 << 10, 1 << 20]),
            cache_bytes: dice.pick(&[0, 2 << 10, 64 << 20]),
            max_waiting_bytes: dice.pick(&[400, 2 << 10, 64 << 20]),
            changes: dice.pick(&[5, 15, 50]),
            transfers: dice.pick(&[5, 5, 40]),
            lease_questions: dice.pick(&[300, 600]),
            chaos: dice.between(20, 80) * SECOND,
            fault_pause: dice.pick(&[500, 2_000, 8_000]) * MS,
            lost: dice.pick(&[0, 5, 30, 100]),
            doubled: dice.pick(&[0, 10, 50]),
            held_up: dice.pick(&[0, 5, 50]),
            delay: dice.pick(&[1, 5, 20]) * MS,
            disk: dice.pick(&[1, 5, 30]) * MS,
            apply: dice.pick(&[1, 5, 30]) * MS,
            think: dice.pick(&[20, 60, 200]) * MS,
            mark_pause: dice.pick(&[1, 5, 20]) * SECOND,
        }
    }
}
