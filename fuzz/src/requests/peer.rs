//! What only members send to each other, in the name of a member that does not
//! run.
//!
//! Members trust each other: a forged command or entry that could have been a
//! true one is carried out, and may rightly stop the member. Such ones are left
//! out here. Everything else it must stand.

use bytes::BytesMut;
use metastore::{
    proto::{Command, ForwardRequest, command::Op, forward_request::Request},
    transport::frame,
};
use prost::Message as _;
use raft::eraftpb::{EntryType, Message, MessageType};

use super::site::{Known, PEER, PEER_INCARNATION};
use crate::{
    decoders,
    dice::Dice,
    mutate::mutate,
    raft_message::{self, Standing},
    tree::Tree,
};

const STREAMS: [&str; 2] = ["/raft/stream/messages", "/raft/stream/appends"];

/// Another path, or another method, than there is.
const OTHERS: [(&str, &str); 6] = [
    ("GET", "/raft/founding"),
    ("GET", "/raft/members"),
    ("POST", "/raft/members"),
    ("GET", "/raft/nothing"),
    ("PUT", "/a"),
    ("POST", "/raft/stream"),
];

/// One request, or what was made of it.
pub fn bytes(dice: &mut Dice, known: Known) -> Vec<u8> {
    if dice.percent(10) {
        let length = dice.length();
        return dice.noise(length);
    }
    let (method, path, body) = match dice.below(10) {
        0..=3 => ("POST", dice.word(&STREAMS), frames(dice)),
        4 => ("POST", "/raft/forward", forward(dice)),
        5 => ("POST", "/raft/forwards", forwards(dice)),
        6 => ("POST", "/raft/snapshot", transfer(dice)),
        7 | 8 => ("POST", "/raft/join", join(dice)),
        _ => {
            let (method, path) = dice.pick(&OTHERS);
            (*method, *path, noise(dice))
        }
    };
    let mut head = head(dice, known, method, path);
    if dice.percent(8) {
        // Only the head: the body is as harmless as it was made.
        let other = head.clone();
        mutate(dice, &mut head, &other);
    }
    head.extend(format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes());
    [head, body].concat()
}

fn head(dice: &mut Dice, known: Known, method: &str, path: &str) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: member\r\n");
    let mut say = |name: &str, value: u64, dice: &mut Dice| {
        let value = if dice.percent(98) { value } else { dice.magnitude() };
        if dice.percent(99) {
            head.push_str(&format!("x-metastore-{name}: {value}\r\n"));
        }
    };
    say("protocol", 1, dice);
    say("cluster", known.cluster_id, dice);
    say("from", PEER, dice);
    say("incarnation", PEER_INCARNATION, dice);
    say("to", 1, dice);
    if dice.percent(10) {
        head.push_str(dice.word(&[
            "x-metastore-url: http://[::1]:7002\r\n",
            "x-metastore-url: http://\r\n",
            "x-metastore-promises: 1 0 1 1\r\n",
            "x-metastore-promises: 18446744073709551615 1 18446744073709551615 1\r\n",
            "x-metastore-promises: x\r\n",
            "x-metastore-protocol: 1-4294967295\r\n",
        ]));
    }
    head.into_bytes()
}

fn noise(dice: &mut Dice) -> Vec<u8> {
    let length = dice.length();
    dice.noise(length)
}

fn frames(dice: &mut Dice) -> Vec<u8> {
    if dice.percent(20) {
        return noise(dice);
    }
    let made = |dice: &mut Dice| {
        let mut bytes = BytesMut::new();
        for _ in 0..=dice.below(4) {
            let standing =
                Standing { term: dice.below(50), last: dice.below(200), commit: dice.below(100) };
            let mut message = raft_message::message(dice, standing);
            message.from = PEER;
            if message.get_msg_type() == MessageType::MsgAppend {
                for entry in message.mut_entries() {
                    *entry = raft::eraftpb::Entry {
                        index: entry.index,
                        term: entry.term,
                        ..Default::default()
                    };
                }
            }
            // What is too large for a frame is left out.
            let _large = frame::encode(&message, &mut bytes);
        }
        bytes.to_vec()
    };
    let mut stream = made(dice);
    if dice.percent(40) {
        let other = made(dice);
        mutate(dice, &mut stream, &other);
    }
    harmless_frames(stream)
}

/// The stream up to a message that could stop a member rightly: an entry that
/// holds something, which it would commit and then not understand.
fn harmless_frames(mut stream: Vec<u8>) -> Vec<u8> {
    let mut at = 0;
    while let Some(head) = stream[at..].first_chunk::<4>() {
        let length = u32::from_be_bytes(*head) as usize;
        let Some(content) = stream.get(at + 4..).and_then(|rest| rest.get(..length)) else { break };
        let holds_something = frame::decode(content).is_ok_and(|message: Message| {
            message.get_msg_type() == MessageType::MsgAppend
                && message.get_entries().iter().any(|entry| {
                    entry.get_entry_type() != EntryType::EntryNormal
                        || !entry.data.is_empty()
                        || !entry.context.is_empty()
                })
        });
        if holds_something {
            stream.truncate(at);
            break;
        }
        at += 4 + length;
    }
    stream
}

fn forward(dice: &mut Dice) -> Vec<u8> {
    if dice.percent(20) {
        return noise(dice);
    }
    const REQUEST: &str = "metastore.v1.ForwardRequest";
    let timeout = if dice.percent(80) { 1 + dice.below(2_000) } else { dice.magnitude() };
    let mut bytes = Tree::grow(dice, REQUEST).with(REQUEST, "timeout_ms", timeout).wire();
    if dice.percent(40) {
        let other = Tree::grow(dice, REQUEST).wire();
        mutate(dice, &mut bytes, &other);
    }
    if is_harmless(&bytes) { bytes } else { Vec::new() }
}

/// A batch of them as it goes over the wire, whatever each of them is.
#[derive(Clone, PartialEq, prost::Message)]
struct Batch {
    #[prost(bytes = "vec", repeated, tag = "1")]
    requests: Vec<Vec<u8>>,
}

fn forwards(dice: &mut Dice) -> Vec<u8> {
    let count = if dice.percent(95) { dice.below(8) } else { 500 + dice.below(30) };
    Batch { requests: (0..count).map(|_| forward(dice)).collect() }.encode_to_vec()
}

/// Whether a forwarded request leaves the cluster with one voter, and with the
/// member in whose name others are asked.
fn is_harmless(bytes: &[u8]) -> bool {
    let Ok(ForwardRequest { request: Some(Request::Command(command)), .. }) =
        ForwardRequest::decode(bytes)
    else {
        return true;
    };
    let Command { op, .. } = command;
    match op {
        Some(Op::PromoteMember(_) | Op::RemoveMember(_)) => false,
        Some(Op::AddMember(add)) => !add.promote_when_caught_up,
        _ => true,
    }
}

/// A transfer that does not come to its end: whole ones are received, and then
/// believed.
fn transfer(dice: &mut Dice) -> Vec<u8> {
    let mut stream = decoders::transfer(dice);
    if dice.percent(40) {
        let other = decoders::transfer(dice);
        mutate(dice, &mut stream, &other);
    }
    let files_begin =
        stream.first_chunk::<4>().map_or(0, |head| u32::from_be_bytes(*head) as usize);
    if stream.len() > files_begin.saturating_add(4) {
        stream.pop();
    }
    stream
}

fn join(dice: &mut Dice) -> Vec<u8> {
    if dice.percent(20) {
        return noise(dice);
    }
    let mut bytes = Tree::grow(dice, "metastore.v1.JoinRequest").wire();
    if dice.percent(40) {
        let other = bytes.clone();
        mutate(dice, &mut bytes, &other);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use raft::eraftpb::Entry;

    use super::*;

    #[test]
    fn what_a_member_would_rightly_stop_at_is_left_out() {
        let mut bytes = BytesMut::new();
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgAppend);
        message.mut_entries().push(Entry::default());
        frame::encode(&message, &mut bytes).expect("small");
        let harmless = bytes.len();
        message.mut_entries()[0].data = "x".into();
        frame::encode(&message, &mut bytes).expect("small");
        assert_eq!(harmless_frames(bytes.to_vec()).len(), harmless);

        let remove = metastore::proto::RemoveMember { id: PEER };
        let command = Command { id: None, op: Some(Op::RemoveMember(remove)) };
        let request = ForwardRequest { request: Some(Request::Command(command)), timeout_ms: 1 };
        assert!(!is_harmless(&request.encode_to_vec()));
        assert!(is_harmless(b""));
    }

    #[test]
    fn a_transfer_is_never_whole() {
        for number in 0..200 {
            let stream = transfer(&mut Dice::new(4, number));
            assert!(stream.len() < (256 << 10) + 1);
        }
    }
}
