//! Effects as text: short, complete where it matters, and the same each time.

use std::{
    fmt::Write as _,
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use metastore::{
    error::Rejected,
    machine::{self, command},
    proto::{Command, LogPosition, Member, Members, Outcome, RequestId, command::Op, outcome},
    raftlog::Persist,
    replica::{Answer, Effect, Role, Status},
};
use raft::eraftpb::{Entry, EntryType, HardState, Message, MessageType};
use slog::{Drain, OwnedKVList, Record};

/// Collects what the replica logs; raft's own lines are none of its business.
pub struct Lines(pub Arc<Mutex<String>>);

impl Drain for Lines {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record, _: &OwnedKVList) -> Result<(), slog::Never> {
        if record.module().starts_with("metastore") {
            let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *lines += &record.msg().to_string();
            lines.push('\n');
        }
        Ok(())
    }
}

/// Takes out the lines collected so far.
pub fn take(lines: &Mutex<String>) -> String {
    mem::take(&mut *lines.lock().unwrap_or_else(PoisonError::into_inner))
}

pub fn effect(id: u64, effect: &Effect, names: &[String]) -> String {
    match effect {
        Effect::Send(sent) | Effect::SendSnapshot(sent) => {
            format!("{}>{} {}", sent.from, sent.to, message(sent))
        }
        Effect::Persist(write) => format!("{id} persist {}", persist(write)),
        Effect::Apply(applied) => format!("{id} apply {}", entries(applied)),
        Effect::Restore(to) => format!("{id} restore {}", position(to)),
        Effect::MakeSnapshot => format!("{id} make snapshot"),
        Effect::Answer(request, given) => {
            format!("{id} answer {}: {}", name(request, names), answer(given))
        }
        Effect::Role(now) => format!("{id} role: {}", role(now)),
        Effect::Removed => format!("{id} removed"),
    }
}

/// The name of a request; the replica's own requests have none.
fn name<'a>(request: &RequestId, names: &'a [String]) -> &'a str {
    let at = usize::try_from(request.sequence).ok().and_then(|number| number.checked_sub(1));
    at.and_then(|at| names.get(at)).map_or("its own", String::as_str)
}

fn message(message: &Message) -> String {
    let kind = message.get_msg_type();
    let mut text = format!("{kind:?} term {}", message.term).split_off("Msg".len());
    let at = LogPosition { index: message.index, term: message.log_term };
    match kind {
        MessageType::MsgAppend => text += &format!(" after {}", position(&at)),
        MessageType::MsgAppendResponse | MessageType::MsgReadIndexResp => {
            text += &format!(" index {}", message.index);
        }
        MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
            text += &format!(" last {}", position(&at));
        }
        MessageType::MsgRequestVoteResponse | MessageType::MsgRequestPreVoteResponse => {
            text += if message.reject { " no" } else { " yes" };
        }
        MessageType::MsgSnapshot => {
            let metadata = message.get_snapshot().get_metadata();
            let at = LogPosition { index: metadata.index, term: metadata.term };
            let conf = metadata.get_conf_state();
            let (voters, learners) = (conf.get_voters(), conf.get_learners());
            text += &format!(" at {}, voters {voters:?} learners {learners:?}", position(&at));
        }
        _ => {}
    }
    if message.reject && kind == MessageType::MsgAppendResponse {
        let hint = LogPosition { index: message.reject_hint, term: message.log_term };
        text += &format!(" refused, try {}", position(&hint));
    }
    if kind == MessageType::MsgAppend {
        text += &format!(" {}", entries(message.get_entries()));
    }
    if matches!(kind, MessageType::MsgReadIndex | MessageType::MsgReadIndexResp) {
        text += &message.get_entries().iter().map(|entry| context(&entry.data)).collect::<String>();
    }
    if matches!(kind, MessageType::MsgAppend | MessageType::MsgHeartbeat) {
        text += &format!(" commit {}", message.commit);
    }
    text + &context(&message.context)
}

/// The round of reads a message confirms, or why a vote cannot wait.
fn context(context: &[u8]) -> String {
    if context.is_empty() {
        return String::new();
    }
    let numbers: Vec<String> = context
        .chunks(8)
        .filter_map(|chunk| chunk.try_into().ok())
        .map(|chunk| u64::from_be_bytes(chunk).to_string())
        .collect();
    match <[String; 3]>::try_from(numbers) {
        Ok([member, start, round]) => format!(" round {member}.{start}.{round}"),
        Err(_) => format!(" {}", context.escape_ascii()),
    }
}

fn persist(persist: &Persist) -> String {
    let mut parts = Vec::new();
    if let Some(at) = &persist.install {
        parts.push(format!("install {}", position(at)));
    }
    if !persist.entries.is_empty() {
        parts.push(entries(&persist.entries));
    }
    if let Some(HardState { term, vote, commit, .. }) = &persist.hard_state {
        parts.push(format!("term {term} vote {vote} commit {commit}"));
    }
    if let Some(at) = &persist.compact {
        parts.push(format!("compact to {}", position(at)));
    }
    // With other writes it is taken along, and not worth a word.
    if persist.witnessed.is_some() && parts.is_empty() {
        parts.push("what was heard".into());
    }
    if !persist.sync {
        parts.push("unsynced".into());
    }
    parts.join(", ")
}

fn entries(entries: &[Entry]) -> String {
    let texts: Vec<String> = entries.iter().map(entry).collect();
    format!("[{}]", texts.join(", "))
}

fn entry(entry: &Entry) -> String {
    let commands = match entry.get_entry_type() {
        EntryType::EntryNormal if entry.data.is_empty() => Ok(vec![]),
        EntryType::EntryNormal => command::decode_payload(&entry.data),
        _ => command::decode_command(&entry.context).map(|command| vec![command]),
    };
    let text = match commands {
        Ok(commands) if commands.is_empty() => "empty".to_owned(),
        Ok(commands) => commands.iter().map(operation).collect::<Vec<_>>().join(" + "),
        Err(e) => e.to_string(),
    };
    let at = LogPosition { index: entry.index, term: entry.term };
    format!("{} {text}", position(&at))
}

fn operation(command: &Command) -> String {
    match &command.op {
        Some(Op::Put(put)) if put.value.len() >= 1 << 20 => {
            format!("{}=<{} MiB>", put.key.escape_ascii(), put.value.len() >> 20)
        }
        Some(Op::Put(put)) => {
            format!("{}={}", put.key.escape_ascii(), put.value.escape_ascii())
        }
        Some(Op::AddMember(add)) => format!("add {}", add.id),
        Some(Op::PromoteMember(promote)) => format!("promote {}", promote.id),
        Some(Op::RemoveMember(remove)) => format!("remove {}", remove.id),
        Some(Op::BindIncarnation(bind)) => format!("bind {}", bind.id),
        Some(Op::SetAlarm(set)) if set.active => format!("accuse {}", set.member),
        Some(Op::SetAlarm(set)) => format!("clear {}", set.member),
        other => format!("{other:?}"),
    }
}

fn answer(answer: &Answer) -> String {
    match answer {
        Answer::Outcome(outcome) => self::outcome(outcome),
        Answer::Readable => "readable".into(),
        Answer::Led => "led".into(),
        Answer::NotLeader(0) => "not leader, and knows of none".into(),
        Answer::NotLeader(leader) => format!("not leader, {leader} is"),
        Answer::Rejected(rejected) => match rejected {
            Rejected::NotApplied(_) | Rejected::Unknown(_) | Rejected::Corrupt(_) => {
                rejected.to_string()
            }
            Rejected::MemberNotFound(_) => format!("not found: {rejected}"),
            Rejected::Overloaded(why) => format!("overloaded: {why}"),
            Rejected::Conflict(why) => format!("conflict: {why}"),
        },
    }
}

fn outcome(outcome: &Outcome) -> String {
    match &outcome.result {
        Some(outcome::Result::Revision(revision)) => format!("revision {revision}"),
        Some(outcome::Result::Member(Member { id, learner, .. })) => {
            format!("member {id}{}", if *learner { ", learner" } else { "" })
        }
        Some(outcome::Result::Conflict(why)) => format!("conflict: {why}"),
        Some(outcome::Result::MemberNotFound(id)) => format!("no member {id}"),
        Some(outcome::Result::Alarms(changed)) => {
            format!("{} alarms changed", changed.alarms.len())
        }
        other => format!("{other:?}"),
    }
}

fn role(role: &Role) -> String {
    format!("{:?} term {} leader {}", role.role, role.term, role.leader_id)
}

pub fn status(status: &Status, members: &Members) -> String {
    let conf = machine::conf_state(members);
    let mut text = format!(
        "{}, commit {} applied {} log {}..{} snapshot {} pending {}, voters {:?} learners {:?}",
        role(&status.role),
        status.commit_index,
        status.applied_index,
        status.first_index,
        status.last_index,
        status.snapshot_index,
        status.pending_proposals,
        conf.get_voters(),
        conf.get_learners(),
    );
    for (id, matched, active) in &status.peers {
        let silent = if *active { "" } else { " silent" };
        let _ = write!(text, ", {id} has {matched}{silent}");
    }
    text
}

fn position(at: &LogPosition) -> String {
    format!("{}@{}", at.index, at.term)
}
