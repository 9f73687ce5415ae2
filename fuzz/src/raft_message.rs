//! Messages of raft, as peers send them and as they never do.

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, Message,
    MessageType,
};

use crate::{dice::Dice, tree::Tree};

/// The kinds that travel between members.
const TRAVELLING: [MessageType; 11] = [
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgTimeoutNow,
    MessageType::MsgReadIndex,
    MessageType::MsgReadIndexResp,
    MessageType::MsgRequestPreVote,
];

/// The others.
const LOCAL: [MessageType; 8] = [
    MessageType::MsgRequestPreVoteResponse,
    MessageType::MsgHup,
    MessageType::MsgBeat,
    MessageType::MsgPropose,
    MessageType::MsgTransferLeader,
    MessageType::MsgUnreachable,
    MessageType::MsgSnapStatus,
    MessageType::MsgCheckQuorum,
];

/// Where the receiver stands, as far as the sender knows.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    /// Its term.
    pub term: u64,
    /// The last entry of its log.
    pub last: u64,
    /// Its commit index.
    pub commit: u64,
}

/// A message to member 1 from one of the others: close to what could be sent to
/// a member that stands there.
pub fn message(dice: &mut Dice, standing: Standing) -> Message {
    let Standing { term, last, commit } = standing;
    let mut message = Message::default();
    let kind = if dice.percent(92) { *dice.pick(&TRAVELLING) } else { *dice.pick(&LOCAL) };
    message.set_msg_type(kind);
    message.to = if dice.percent(97) { 1 } else { dice.below(5) };
    message.from = if dice.percent(97) { 2 + dice.below(2) } else { dice.below(6) };
    message.term = match kind {
        MessageType::MsgReadIndex if dice.percent(90) => 0,
        _ => near(dice, term),
    };
    message.index = near(dice, last);
    message.log_term = near(dice, term).min(message.term);
    message.commit = near(dice, commit);
    message.reject = dice.percent(30);
    message.reject_hint = near(dice, last);
    if dice.percent(10) {
        message.commit_term = near(dice, term);
        message.request_snapshot = dice.magnitude();
        message.priority = i64::from(dice.byte());
    }
    match kind {
        MessageType::MsgAppend => append(dice, &mut message),
        MessageType::MsgReadIndex | MessageType::MsgReadIndexResp => {
            let length = 1 + dice.index(24);
            let data = if dice.percent(90) { dice.noise(length) } else { Vec::new() };
            message.mut_entries().push(Entry { data: data.into(), ..Entry::default() });
        }
        MessageType::MsgSnapshot => snapshot(dice, &mut message, last),
        _ => {}
    }
    if dice.percent(20) {
        let length = dice.index(24);
        message.context = dice.noise(length).into();
    }
    message
}

/// The number itself, one nearby, or any.
fn near(dice: &mut Dice, number: u64) -> u64 {
    match dice.below(20) {
        0..=9 => number,
        10..=12 => number.saturating_add(1),
        13..=15 => number.saturating_sub(1),
        16 | 17 => dice.below(number.saturating_add(3)),
        18 => number.saturating_add(dice.below(1000)),
        _ => dice.magnitude(),
    }
}

fn append(dice: &mut Dice, message: &mut Message) {
    let (mut index, mut term) = (message.index, message.log_term.max(1));
    for _ in 0..dice.below(4) {
        index = if dice.percent(97) { index.saturating_add(1) } else { dice.magnitude() };
        if dice.percent(30) {
            term = term.max(message.term);
        }
        let mut entry = entry(dice);
        (entry.index, entry.term) = (index, term);
        message.mut_entries().push(entry);
    }
}

/// An entry as the log has it, without its place.
pub fn entry(dice: &mut Dice) -> Entry {
    let mut entry = Entry::default();
    match dice.below(10) {
        0..=2 => {}
        3..=6 => entry.data = payload(dice).into(),
        7 | 8 => {
            entry.set_entry_type(EntryType::EntryConfChangeV2);
            entry.data = conf_change(dice);
            entry.context = payload(dice).into();
        }
        _ => {
            let length = dice.index(40);
            entry.data = dice.noise(length).into();
            if dice.percent(50) {
                entry.set_entry_type(EntryType::EntryConfChange);
            }
        }
    }
    entry
}

/// The data of an entry: commands in their envelope.
pub fn payload(dice: &mut Dice) -> Vec<u8> {
    let version = if dice.percent(97) { 1 } else { dice.magnitude() };
    Tree::grow(dice, "metastore.v1.Payload").with("metastore.v1.Payload", "version", version).wire()
}

fn conf_change(dice: &mut Dice) -> Bytes {
    let mut change = ConfChangeV2::default();
    for _ in 0..=dice.below(2) {
        let node_id = 1 + dice.below(5);
        let mut single = ConfChangeSingle { node_id, ..ConfChangeSingle::default() };
        single.set_change_type(*dice.pick(&[
            ConfChangeType::AddNode,
            ConfChangeType::AddLearnerNode,
            ConfChangeType::RemoveNode,
        ]));
        change.mut_changes().push(single);
    }
    // What cannot be encoded is empty, which is an input too.
    change.write_to_bytes().unwrap_or_default().into()
}

fn snapshot(dice: &mut Dice, message: &mut Message, last: u64) {
    let (index, term) = (near(dice, last.saturating_add(5)), near(dice, message.term));
    let metadata = message.mut_snapshot().mut_metadata();
    (metadata.index, metadata.term) = (index, term);
    let mut conf_state = ConfState::from((vec![1, 2, 3], vec![]));
    match dice.below(8) {
        0 => conf_state.voters = (0..dice.below(5)).map(|_| dice.below(5)).collect(),
        1 => conf_state.learners = (0..dice.below(3)).map(|_| dice.below(7)).collect(),
        2 => conf_state = ConfState::from((vec![2, 3], vec![1])),
        3 => conf_state = ConfState::from((vec![2, 3], vec![])),
        4 if dice.percent(30) => conf_state.voters_outgoing = vec![1, 2],
        _ => {}
    }
    metadata.set_conf_state(conf_state);
}

/// The message as it travels.
pub fn encoded(message: &Message) -> Vec<u8> {
    // What cannot be encoded is empty, which is an input too.
    message.write_to_bytes().unwrap_or_default()
}
