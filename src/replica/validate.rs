//! Which peer messages raft may see.
//!
//! Raft trusts its peers and panics on some malformed messages; a peer may be
//! another version, damaged, or restored from an old copy of its disk. What
//! does not pass here is dropped.

use raft::{
    StateRole, Storage,
    eraftpb::{Message, MessageType},
};

use super::Replica;
use crate::{raftlog::CEILING, storage::Engine};

/// Checks a message on its own: its kind, its addresses and its entries.
///
/// # Errors
/// What is wrong with it.
pub fn message(message: &Message, own_id: u64) -> Result<(), String> {
    let kind = message.get_msg_type();
    if message.to != own_id || message.from == 0 || message.from == own_id {
        return Err(format!("addressed from {} to {}", message.from, message.to));
    }
    // Before anything counts on from one of them.
    let positions = [message.index, message.log_term, message.reject_hint];
    let commits = [message.commit, message.commit_term];
    if positions.iter().chain(&commits).chain([&message.term]).any(|&number| number >= CEILING) {
        return Err("a term or index out of all proportion".to_owned());
    }
    match kind {
        MessageType::MsgReadIndex => read_index(message)?,
        MessageType::MsgAppend => append(message)?,
        MessageType::MsgSnapshot => snapshot(message)?,
        MessageType::MsgReadIndexResp if message.entries.len() != 1 => {
            return Err("a read index answer without its context".to_owned());
        }
        MessageType::MsgAppendResponse if message.request_snapshot != 0 => {
            return Err("a request for a snapshot, which no member makes".to_owned());
        }
        MessageType::MsgAppendResponse
        | MessageType::MsgHeartbeat
        | MessageType::MsgHeartbeatResponse
        | MessageType::MsgReadIndexResp
        | MessageType::MsgRequestVote
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVote
        | MessageType::MsgRequestPreVoteResponse
        | MessageType::MsgTimeoutNow => {}
        // Among them a transfer of leadership, which a follower would pass on,
        // and raft panics when it passes on what has a term.
        _ => return Err(format!("{kind:?} does not travel between members")),
    }
    // Raft takes a message of term 0 for one it sent itself; a read index
    // request is the only one that it sends without.
    if (message.term == 0) != (kind == MessageType::MsgReadIndex) {
        return Err(format!("{kind:?} of term {}", message.term));
    }
    Ok(())
}

fn read_index(message: &Message) -> Result<(), String> {
    match message.get_entries() {
        [entry] if !entry.data.is_empty() => Ok(()),
        _ => Err("a read index request without its context".to_owned()),
    }
}

fn append(message: &Message) -> Result<(), String> {
    // To raft, whatever lies beyond its log has term 0.
    if (message.index == 0) != (message.log_term == 0) {
        return Err(format!("entries after {} of term {}", message.index, message.log_term));
    }
    if message.index == 0 && !message.get_entries().is_empty() {
        // Logs begin after the founding, and whoever has nothing takes a snapshot
        // first: without it there would be no configuration.
        return Err("a first entry, which no log has".to_owned());
    }
    let mut term = message.log_term.max(1);
    for (entry, index) in message.get_entries().iter().zip(message.index.saturating_add(1)..) {
        if entry.index != index {
            return Err(format!("entry {} where {index} belongs", entry.index));
        }
        if entry.term < term || entry.term > message.term {
            return Err(format!("entry {index} of term {} after term {term}", entry.term));
        }
        term = entry.term;
    }
    Ok(())
}

fn snapshot(message: &Message) -> Result<(), String> {
    let metadata = message.get_snapshot().get_metadata();
    let bounded = metadata.index < CEILING && metadata.term <= message.term;
    if metadata.index == 0 || metadata.term == 0 || !bounded {
        return Err("a snapshot without a position".to_owned());
    }
    let conf_state = metadata.get_conf_state();
    if conf_state.voters.is_empty() {
        return Err("a snapshot of a cluster without voters".to_owned());
    }
    let mut ids: Vec<u64> = [&conf_state.voters[..], &conf_state.learners[..]].concat();
    ids.sort_unstable();
    let distinct = ids.windows(2).all(|pair| pair[0] != pair[1]) && ids[0] != 0;
    let joint = !conf_state.voters_outgoing.is_empty() || !conf_state.learners_next.is_empty();
    if !distinct || joint || conf_state.auto_leave {
        return Err(format!("a snapshot of an impossible configuration: {conf_state:?}"));
    }
    Ok(())
}

impl<E: Engine> Replica<E> {
    /// Checks a message against this member's log: raft panics when a peer
    /// contradicts what is committed here.
    ///
    /// A message of an earlier term may well, when it comes late from a leader
    /// that was replaced. Raft does not look into its log for it, and tells
    /// that leader of the new term.
    pub(super) fn contradiction(&self, message: &Message) -> Option<String> {
        if message.term < self.node.raft.term {
            return None;
        }
        let log = &self.node.raft.raft_log;
        match message.get_msg_type() {
            MessageType::MsgHeartbeat if message.commit > log.last_index() => Some(format!(
                "member {} takes index {} for stored here, but the log ends at {}",
                message.from,
                message.commit,
                log.last_index()
            )),
            // Votes are asked for once the log is durable, and whoever wins an
            // election relies on that.
            MessageType::MsgRequestVoteResponse
                if self.node.raft.state == StateRole::Candidate
                    && !message.reject
                    && log.persisted < log.last_index() =>
            {
                Some(format!("member {} votes before it was asked to", message.from))
            }
            MessageType::MsgAppendResponse
                if !message.reject && message.index > log.last_index() =>
            {
                Some(format!(
                    "member {} confirms index {} of a log that ends at {}",
                    message.from,
                    message.index,
                    log.last_index()
                ))
            }
            MessageType::MsgSnapshot => {
                let metadata = message.get_snapshot().get_metadata();
                let (index, term) = (metadata.index, metadata.term);
                let contradicts = index <= log.committed
                    && log.term(index).is_ok_and(|committed| committed != term);
                contradicts.then(|| {
                    let from = message.from;
                    format!("member {from} sends a snapshot of another entry {index} than here")
                })
            }
            MessageType::MsgAppend => {
                let first = self.node.store().first_index().unwrap_or(1);
                let conflict = message.get_entries().iter().find(|entry| {
                    entry.index >= first
                        && entry.index <= log.committed
                        && log.term(entry.index).is_ok_and(|term| term != entry.term)
                })?;
                Some(format!(
                    "member {} sends another entry {} than the committed one",
                    message.from, conflict.index
                ))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use raft::eraftpb::Entry;

    use super::*;

    fn of_type(kind: MessageType) -> Message {
        let mut message = Message { from: 2, to: 1, term: 3, ..Message::default() };
        message.set_msg_type(kind);
        message
    }

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, ..Entry::default() }
    }

    #[test]
    fn misaddressed_and_local_messages_are_refused() {
        let mut to_another = of_type(MessageType::MsgHeartbeat);
        to_another.to = 7;
        assert!(message(&to_another, 1).is_err());
        let mut from_self = of_type(MessageType::MsgHeartbeat);
        from_self.from = 1;
        assert!(message(&from_self, 1).is_err());
        for kind in [
            MessageType::MsgHup,
            MessageType::MsgBeat,
            MessageType::MsgPropose,
            MessageType::MsgTransferLeader,
            MessageType::MsgUnreachable,
            MessageType::MsgSnapStatus,
            MessageType::MsgCheckQuorum,
        ] {
            assert!(message(&of_type(kind), 1).is_err(), "{kind:?}");
        }
        assert_eq!(message(&of_type(MessageType::MsgHeartbeat), 1), Ok(()));
    }

    #[test]
    fn appends_must_be_contiguous_with_rising_terms() {
        let mut append = of_type(MessageType::MsgAppend);
        append.index = 4;
        append.log_term = 2;
        append.set_entries(vec![entry(5, 2), entry(6, 3)].into());
        assert_eq!(message(&append, 1), Ok(()));
        append.set_entries(vec![entry(5, 2), entry(7, 3)].into());
        assert!(message(&append, 1).is_err());
        append.set_entries(vec![entry(5, 1)].into());
        assert!(message(&append, 1).is_err());
        append.set_entries(vec![entry(5, 4)].into());
        assert!(message(&append, 1).is_err());
    }

    #[test]
    fn appends_must_follow_an_entry_that_can_be() {
        let mut append = of_type(MessageType::MsgAppend);
        append.index = 90;
        assert!(message(&append, 1).is_err(), "to raft, all beyond its log has term 0");
        append.index = 0;
        assert_eq!(message(&append, 1), Ok(()));
        append.set_entries(vec![entry(1, 0)].into());
        assert!(message(&append, 1).is_err());
        append.set_entries(vec![entry(1, 1)].into());
        assert!(message(&append, 1).is_err(), "a member without data needs a snapshot");
    }

    #[test]
    fn messages_without_term_or_out_of_proportion_are_refused() {
        let mut heartbeat = of_type(MessageType::MsgHeartbeat);
        heartbeat.term = 0;
        assert!(message(&heartbeat, 1).is_err());
        heartbeat.term = u64::MAX;
        assert!(message(&heartbeat, 1).is_err());
        let mut rejection = of_type(MessageType::MsgAppendResponse);
        rejection.reject_hint = u64::MAX;
        assert!(message(&rejection, 1).is_err());
    }

    #[test]
    fn appends_at_the_end_of_all_indexes_are_refused() {
        let mut append = of_type(MessageType::MsgAppend);
        (append.index, append.log_term) = (u64::MAX, 2);
        for entries in [vec![], vec![entry(u64::MAX, 2)], vec![entry(0, 2), entry(1, 2)]] {
            append.set_entries(entries.into());
            assert!(message(&append, 1).is_err());
        }
    }

    #[test]
    fn read_index_needs_its_context() {
        let mut read = of_type(MessageType::MsgReadIndex);
        read.term = 0;
        assert!(message(&read, 1).is_err());
        read.set_entries(vec![entry(0, 0)].into());
        assert!(message(&read, 1).is_err());
        read.mut_entries()[0].data = "x".into();
        assert_eq!(message(&read, 1), Ok(()));
        read.term = 3;
        assert!(message(&read, 1).is_err(), "a follower would panic passing it on");
    }

    #[test]
    fn snapshots_need_a_position_and_voters() {
        let mut snapshot = of_type(MessageType::MsgSnapshot);
        assert!(message(&snapshot, 1).is_err());
        snapshot.mut_snapshot().mut_metadata().index = 9;
        snapshot.mut_snapshot().mut_metadata().term = 2;
        assert!(message(&snapshot, 1).is_err());
        snapshot.mut_snapshot().mut_metadata().mut_conf_state().voters = vec![1, 2];
        assert_eq!(message(&snapshot, 1), Ok(()));
        snapshot.mut_snapshot().mut_metadata().mut_conf_state().learners = vec![2];
        assert!(message(&snapshot, 1).is_err(), "a voter that is a learner too");
    }
}
