//! What a log entry carries: commands in a versioned envelope.
//!
//! A normal entry's data is a [`Payload`] of any number of commands. A
//! configuration-change entry's context is a [`Payload`] of exactly one, and
//! that command, not the entry's data, says what is to change: raft reads the
//! data, the state machine the context.
//!
//! A committed entry that cannot be understood stops the node. Skipping it, or
//! a part of it, would let members that do understand it drift away. The leader
//! does not let it come to that: [`version_of`] says which members know a command.

use prost::Message;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};

use crate::{
    error::Fatal,
    proto::{Command, Payload, command::Op},
    version::PROTOCOL,
};

/// The newest version of the envelope that this program reads: that of the
/// newest command it knows.
pub const PAYLOAD_VERSION: u32 = PROTOCOL.newest();

/// The largest envelope in bytes. Peers exchange entries in frames of at most
/// 64 MiB, so that a larger one cannot have been replicated.
pub const MAX_PAYLOAD_BYTES: usize = 64 << 20;

/// The protocol that a command came with: members that do not speak it do not
/// know the command. One with a field that came later has the version of that
/// field when the field is set, and never the default that older members see.
pub fn version_of(command: &Command) -> u32 {
    match &command.op {
        None => PROTOCOL.newest(),
        Some(
            Op::Put(_)
            | Op::Delete(_)
            | Op::BindIncarnation(_)
            | Op::SetClientUrl(_)
            | Op::SetPeerUrl(_)
            | Op::AddMember(_)
            | Op::PromoteMember(_)
            | Op::RemoveMember(_)
            | Op::PutRequest(_)
            | Op::DeleteRange(_)
            | Op::Txn(_)
            | Op::Compact(_)
            | Op::GrantLease(_)
            | Op::RevokeLease(_)
            | Op::ExpireLeases(_)
            | Op::RenewLeases(_)
            | Op::CheckpointLeases(_)
            | Op::SetAlarm(_),
        ) => 1,
        Some(Op::CheckState(_)) => 2,
    }
}

/// Encodes commands as the data of a normal entry, of the lowest version that
/// has them all. The caller keeps the sum of their sizes well below
/// [`MAX_PAYLOAD_BYTES`].
pub fn encode_payload(commands: Vec<Command>) -> Vec<u8> {
    let version = commands.iter().map(version_of).max().unwrap_or(PROTOCOL.oldest());
    Payload { version, commands }.encode_to_vec()
}

/// Decodes the data of a normal entry.
///
/// # Errors
/// When the data is larger than [`MAX_PAYLOAD_BYTES`], not a payload, of a
/// newer version, or holds an operation or a field this program does not know.
pub fn decode_payload(data: &[u8]) -> Result<Vec<Command>, Fatal> {
    if data.len() > MAX_PAYLOAD_BYTES {
        let size = data.len();
        return Err(Fatal::corrupt(format!("a payload of {size} bytes is impossibly large")));
    }
    let payload = Payload::decode(data)
        .map_err(|cause| Fatal::corrupt(format!("a payload cannot be decoded: {cause}")))?;
    if !(1..=PAYLOAD_VERSION).contains(&payload.version) {
        let version = payload.version;
        return Err(too_new(&format!(
            "a payload has version {version}, this program reads version {PAYLOAD_VERSION}"
        )));
    }
    if payload.commands.iter().any(|command| command.op.is_none()) {
        return Err(too_new("a payload holds an operation this program does not know"));
    }
    // Decoding skips fields it does not know.
    if payload.encoded_len() != data.len() {
        return Err(too_new("a payload holds a field this program does not know"));
    }
    Ok(payload.commands)
}

/// Encodes one command as the context of a configuration-change entry.
pub fn encode_command(command: &Command) -> Vec<u8> {
    encode_payload(vec![command.clone()])
}

/// Decodes the context of a configuration-change entry.
///
/// # Errors
/// As [`decode_payload`], and when there is not exactly one command.
pub fn decode_command(context: &[u8]) -> Result<Command, Fatal> {
    let mut commands = decode_payload(context)?;
    match (commands.pop(), commands.len()) {
        (Some(command), 0) => Ok(command),
        (_, rest) => Err(Fatal::corrupt(format!(
            "a configuration change holds {} commands instead of one",
            if rest == 0 { 0 } else { rest + 1 }
        ))),
    }
}

/// Whether every member can apply the command: it names its request and an
/// operation this program knows. Nothing else may be proposed.
pub fn is_complete(command: &Command) -> bool {
    command.id.is_some() && command.op.is_some()
}

/// Whether a command reads or writes keys or leases for a client; the others
/// are the members' own, and operators'.
pub fn is_of_clients(op: &Op) -> bool {
    match op {
        Op::Put(_)
        | Op::Delete(_)
        | Op::PutRequest(_)
        | Op::DeleteRange(_)
        | Op::Txn(_)
        | Op::Compact(_)
        | Op::GrantLease(_)
        | Op::RevokeLease(_) => true,
        Op::ExpireLeases(_)
        | Op::RenewLeases(_)
        | Op::CheckpointLeases(_)
        | Op::SetAlarm(_)
        | Op::CheckState(_)
        | Op::BindIncarnation(_)
        | Op::SetClientUrl(_)
        | Op::SetPeerUrl(_)
        | Op::AddMember(_)
        | Op::PromoteMember(_)
        | Op::RemoveMember(_) => false,
    }
}

/// The configuration change a command asks raft for, or none when the command
/// belongs into a normal entry. It is always a single change without joint
/// consensus, and a member always comes in as a learner.
pub fn conf_change(command: &Command) -> Option<ConfChangeV2> {
    let (id, kind) = match command.op.as_ref()? {
        Op::AddMember(add) => (add.id, ConfChangeType::AddLearnerNode),
        Op::PromoteMember(promote) => (promote.id, ConfChangeType::AddNode),
        Op::RemoveMember(remove) => (remove.id, ConfChangeType::RemoveNode),
        _ => return None,
    };
    let mut single = ConfChangeSingle::default();
    single.set_node_id(id);
    single.set_change_type(kind);
    let mut change = ConfChangeV2::default();
    change.set_transition(ConfChangeTransition::Auto);
    change.mut_changes().push(single);
    Some(change)
}

fn too_new(what: &str) -> Fatal {
    Fatal::new(what, "run the version of metastore that the other members run")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{AddMember, CheckState, PromoteMember, Put, RemoveMember, RequestId};

    fn command(op: Op) -> Command {
        Command { id: Some(RequestId { member: 1, nonce: 2, sequence: 3 }), op: Some(op) }
    }

    fn put(key: &'static [u8], value: &'static [u8]) -> Command {
        command(Op::Put(Put {
            key: key.into(),
            value: value.into(),
            condition: None,
            ..Put::default()
        }))
    }

    #[test]
    fn commands_survive_the_round_trip_with_any_bytes() {
        let commands = vec![put(b"a", b""), put(b"\xff\x00\xfe", b"\x80"), put(b"", b"x")];
        assert_eq!(decode_payload(&encode_payload(commands.clone())).unwrap(), commands);
        assert_eq!(decode_command(&encode_command(&commands[1])).unwrap(), commands[1]);
    }

    #[test]
    fn the_envelope_is_pinned() {
        let bytes = encode_payload(vec![put(b"k", b"v")]);
        let expected =
            b"\x08\x01\x12\x10\x0a\x06\x08\x01\x10\x02\x18\x03\x12\x06\x0a\x01k\x12\x01v";
        assert_eq!(bytes, expected);
    }

    #[test]
    fn an_envelope_has_the_version_of_its_newest_command() {
        let mark = command(Op::CheckState(CheckState {}));
        for (commands, version) in [
            (vec![put(b"k", b"v")], 1),
            (vec![mark.clone()], 2),
            (vec![put(b"k", b"v"), mark.clone(), put(b"k", b"w")], 2),
        ] {
            let bytes = encode_payload(commands.clone());
            assert_eq!(Payload::decode(&bytes[..]).unwrap().version, version);
            assert_eq!(decode_payload(&bytes).unwrap(), commands);
        }
    }

    #[test]
    fn another_version_stops_the_node_and_names_both() {
        for version in [0, PAYLOAD_VERSION + 1, u32::MAX] {
            let bytes = Payload { version, commands: vec![put(b"a", b"b")] }.encode_to_vec();
            let fatal = decode_payload(&bytes).unwrap_err();
            assert!(fatal.what.contains(&format!("version {version}, ")), "{fatal}");
            assert!(fatal.remedy.contains("run the version"), "{fatal}");
        }
    }

    #[test]
    fn an_unknown_operation_stops_the_node() {
        // Field 99 of Command, as a newer program might write it.
        let bytes = b"\x08\x01\x12\x05\x9a\x06\x02hi";
        assert!(decode_payload(bytes).unwrap_err().what.contains("does not know"));
    }

    #[test]
    fn an_unknown_field_stops_the_node_wherever_it_is() {
        let whole = put(b"k", b"v");
        let Some(Op::Put(op)) = &whole.op else { unreachable!("it is a put") };
        let id = whole.id.expect("it has an id").encode_to_vec();
        // Field 99, a number, behind what a put has, what a command has, and
        // what a payload has.
        let field = b"\x98\x06\x07";
        let nested = |tag: u8, content: &[u8]| {
            [&[tag, u8::try_from(content.len()).expect("small")], content].concat()
        };
        let command =
            |op: &[u8], more: &[u8]| [nested(0x0a, &id), nested(0x12, op), more.to_vec()].concat();
        let payload = |command: &[u8], more: &[u8]| {
            [b"\x08\x01".to_vec(), nested(0x12, command), more.to_vec()].concat()
        };
        let op = op.encode_to_vec();
        assert_eq!(decode_payload(&payload(&command(&op, b""), b"")).unwrap(), [whole]);
        let newer_op = [&op[..], field].concat();
        for bytes in [
            payload(&command(&newer_op, b""), b""),
            payload(&command(&op, field), b""),
            payload(&command(&op, b""), field),
        ] {
            let fatal = decode_payload(&bytes).unwrap_err();
            assert!(fatal.what.contains("a field this program does not know"), "{fatal}");
        }
    }

    #[test]
    fn damaged_data_stops_the_node() {
        let bytes = encode_payload(vec![put(b"key", b"value")]);
        for length in 1..bytes.len() {
            // A cut right after the version leaves a valid, empty payload.
            assert_eq!(decode_payload(&bytes[..length]).is_ok(), length == 2, "at {length}");
        }
        assert!(decode_payload(b"\xff\xff\xff").is_err());
        let huge = vec![0; MAX_PAYLOAD_BYTES + 1];
        assert!(decode_payload(&huge).unwrap_err().what.contains("impossibly large"));
    }

    #[test]
    fn a_configuration_change_holds_exactly_one_command() {
        for (count, commands) in [(0, vec![]), (2, vec![put(b"a", b""), put(b"b", b"")])] {
            let fatal = decode_command(&encode_payload(commands)).unwrap_err();
            assert!(fatal.what.contains(&format!("holds {count} commands")), "{fatal}");
        }
    }

    #[test]
    fn only_a_command_with_an_id_and_an_operation_is_complete() {
        let whole = put(b"a", b"");
        assert!(is_complete(&whole));
        assert!(!is_complete(&Command { id: None, ..whole.clone() }));
        assert!(!is_complete(&Command { op: None, ..whole }));
    }

    #[test]
    fn configuration_changes_are_simple_and_add_learners() {
        let add = AddMember { id: 4, peer_url: "http://d:1".into(), promote_when_caught_up: true };
        for (op, id, kind) in [
            (Op::AddMember(add), 4, ConfChangeType::AddLearnerNode),
            (Op::PromoteMember(PromoteMember { id: 5 }), 5, ConfChangeType::AddNode),
            (Op::RemoveMember(RemoveMember { id: 6 }), 6, ConfChangeType::RemoveNode),
        ] {
            let change = conf_change(&command(op)).unwrap();
            assert_eq!(change.enter_joint(), None);
            assert!(!change.leave_joint());
            assert_eq!(change.get_changes().len(), 1);
            assert_eq!(change.get_changes()[0].get_node_id(), id);
            assert_eq!(change.get_changes()[0].get_change_type(), kind);
        }
        assert!(conf_change(&put(b"a", b"b")).is_none());
    }
}
