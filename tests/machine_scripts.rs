//! Golden scripts of the state machine: what commands answer, and what they
//! leave in the state database. `UPDATE_GOLDENFILES=1` rewrites the answers.
//!
//! A command is an entry and a batch of its own, unless it is tagged:
//! `[entry]` makes it share the entry of the next one, `[batch]` the batch.

use std::{error::Error, fmt::Write as _, ops::Bound, path::Path};

use goldenscript::Context;
use metastore::{
    machine::{AppliedEntry, StateMachine, command},
    proto::{
        AddMember, BindIncarnation, Change, Command, Condition, Delete, Founder, FoundingRecord,
        KeyRecord, Member, Outcome, PromoteMember, Put, RemoveMember, RequestId, SetClientUrl,
        SetPeerUrl, Tombstone, command::Op, outcome,
    },
    storage::{Family, Pair, Reader, keys, memory::MemoryEngine},
};
use prost::Message;
use raft::eraftpb::{ConfChangeType, Entry, EntryType};

#[test]
fn conditions() {
    run("conditions");
}

#[test]
fn damage() {
    run("damage");
}

#[test]
fn membership() {
    run("membership");
}

#[test]
fn restart() {
    run("restart");
}

#[test]
fn revisions() {
    run("revisions");
}

fn run(script: &str) {
    let path = Path::new("tests/scripts/machine").join(script);
    goldenscript::run(&mut Runner::default(), path).expect("a script that runs");
}

#[derive(goldenscript::Command)]
enum Step {
    /// Founds a cluster of these members. Example: found 1 2 3
    Found(Vec<u64>),
    /// Sets a key. Example: put key value if_match="2,3" if_none_match="*"
    Put {
        key: String,
        value: String,
        #[arg(key)]
        if_match: Option<String>,
        #[arg(key)]
        if_none_match: Option<String>,
    },
    /// Removes a key.
    Delete {
        key: String,
        #[arg(key)]
        if_match: Option<String>,
        #[arg(key)]
        if_none_match: Option<String>,
    },
    /// Adds a member. Example: add 4 n4 promote=true
    Add {
        id: u64,
        url: String,
        #[arg(key, optional)]
        promote: bool,
    },
    Promote(u64),
    Remove(u64),
    Bind(u64, u64),
    ClientUrl(u64, String),
    PeerUrl(u64, String),
    /// A new leader's first entry, of this term.
    Lead(u64),
    /// A normal entry with this data.
    Raw(String),
    /// Moves the index of the next entry.
    Skip(u64),
    Get(String),
    /// Prints everything the database holds.
    Dump,
    Members,
    Flush,
    /// Opens the database again.
    Reopen,
    /// Opens what a power loss leaves.
    Crash,
    Hash,
}

type Answer = Result<String, Box<dyn Error>>;

#[derive(Default)]
struct Runner {
    machine: Option<StateMachine<MemoryEngine>>,
    term: u64,
    skipped: u64,
    requests: u64,
    /// Commands that wait for the rest of their entry.
    entry: Vec<Command>,
    /// Entries that wait for the rest of their batch.
    batch: Vec<Entry>,
}

impl goldenscript::Runner for Runner {
    type Command = Step;

    fn run(&mut self, step: &Step, context: &Context) -> Answer {
        match step {
            Step::Found(ids) => return self.found(ids),
            Step::Lead(term) => {
                self.term = *term;
                return self.log(EntryType::EntryNormal, vec![], vec![], context);
            }
            Step::Raw(data) => {
                return self.log(EntryType::EntryNormal, data.as_bytes().into(), vec![], context);
            }
            Step::Skip(entries) => {
                self.skipped = *entries;
                return Ok(String::new());
            }
            _ => {}
        }
        match operation(step) {
            Some(op) => self.propose(op, context),
            None => self.inspect(step),
        }
    }

    fn end_script(&mut self) -> Result<(), Box<dyn Error>> {
        let waiting = self.entry.len() + self.batch.len();
        if waiting == 0 { Ok(()) } else { Err("the last command has a tag".into()) }
    }
}

impl Runner {
    fn machine(&mut self) -> Result<&mut StateMachine<MemoryEngine>, Box<dyn Error>> {
        self.machine.as_mut().ok_or_else(|| "not founded yet".into())
    }

    fn found(&mut self, ids: &[u64]) -> Answer {
        let founder =
            |id: &u64| Founder { id: *id, peer_url: format!("n{id}"), incarnation: id * 11 };
        let founding = FoundingRecord { founders: ids.iter().map(founder).collect() };
        let engine = MemoryEngine::new();
        StateMachine::bootstrap(&engine, &founding)?;
        self.machine = Some(StateMachine::open(engine)?);
        self.term = 1;
        self.position()
    }

    fn propose(&mut self, op: Op, context: &Context) -> Answer {
        self.requests += 1;
        let id = RequestId { member: 1, nonce: 7, sequence: self.requests };
        let command = Command { id: Some(id), op: Some(op) };
        if let Some(change) = command::conf_change(&command) {
            let data = protobuf::Message::write_to_bytes(&change)?;
            let command = command::encode_command(&command);
            return self.log(EntryType::EntryConfChangeV2, data, command, context);
        }
        self.entry.push(command);
        if context.tags.contains("entry") {
            return Ok(String::new());
        }
        let data = command::encode_payload(&std::mem::take(&mut self.entry));
        self.log(EntryType::EntryNormal, data, vec![], context)
    }

    /// Appends an entry, and applies the batch unless it has to wait.
    fn log(&mut self, kind: EntryType, data: Vec<u8>, text: Vec<u8>, context: &Context) -> Answer {
        let applied = self.machine()?.position().index + self.batch.len() as u64;
        let mut entry = Entry::default();
        entry.set_entry_type(kind);
        entry.set_index(applied + 1 + std::mem::take(&mut self.skipped));
        entry.set_term(self.term);
        entry.set_data(data.into());
        entry.set_context(text.into());
        self.batch.push(entry);
        if context.tags.contains("batch") {
            return Ok(String::new());
        }
        let batch = std::mem::take(&mut self.batch);
        let applied = self.machine()?.apply(&batch)?;
        let mut out = String::new();
        for entry in &applied.entries {
            write_entry(&mut out, entry)?;
        }
        Ok(out)
    }

    fn inspect(&mut self, step: &Step) -> Answer {
        let machine = self.machine()?;
        let engine = match step {
            Step::Get(key) => {
                let record = machine.view().get(key.as_bytes())?;
                return Ok(record.map_or_else(|| "none".to_owned(), |record| show(&record)));
            }
            Step::Hash => return Ok(machine.view().hash()?.to_string()),
            Step::Members => return members(machine),
            Step::Dump => return dump(machine.engine()),
            Step::Flush => {
                machine.flush()?;
                return Ok(String::new());
            }
            Step::Crash => machine.engine().crash(|_| 0),
            _ => machine.engine().clone(),
        };
        self.machine = Some(StateMachine::open(engine)?);
        self.position()
    }

    fn position(&mut self) -> Answer {
        let machine = self.machine()?;
        let (at, revision) = (machine.position(), machine.revision());
        Ok(format!("index {} term {} revision {revision}", at.index, at.term))
    }
}

/// The operation of a step that is a command of the log.
fn operation(step: &Step) -> Option<Op> {
    Some(match step {
        Step::Put { key, value, if_match, if_none_match } => Op::Put(Put {
            key: key.clone().into(),
            value: value.clone().into(),
            condition: condition(if_match.as_deref(), if_none_match.as_deref()),
        }),
        Step::Delete { key, if_match, if_none_match } => Op::Delete(Delete {
            key: key.clone().into(),
            condition: condition(if_match.as_deref(), if_none_match.as_deref()),
        }),
        Step::Add { id, url, promote } => Op::AddMember(AddMember {
            id: *id,
            peer_url: url.clone(),
            promote_when_caught_up: *promote,
        }),
        Step::Promote(id) => Op::PromoteMember(PromoteMember { id: *id }),
        Step::Remove(id) => Op::RemoveMember(RemoveMember { id: *id }),
        Step::Bind(id, incarnation) => {
            Op::BindIncarnation(BindIncarnation { id: *id, incarnation: *incarnation })
        }
        Step::ClientUrl(id, url) => {
            Op::SetClientUrl(SetClientUrl { id: *id, client_url: url.clone() })
        }
        Step::PeerUrl(id, url) => Op::SetPeerUrl(SetPeerUrl { id: *id, peer_url: url.clone() }),
        _ => return None,
    })
}

fn condition(if_match: Option<&str>, if_none_match: Option<&str>) -> Option<Condition> {
    if if_match.is_none() && if_none_match.is_none() {
        return None;
    }
    let revisions = |list: Option<&str>| -> Vec<u64> {
        let tags = list.unwrap_or_default().split(',');
        tags.filter_map(|tag| tag.trim().parse().ok()).collect()
    };
    Some(Condition {
        mod_revisions: revisions(if_match),
        exists: if_match == Some("*"),
        absent: if_none_match == Some("*"),
        not_mod_revisions: revisions(if_none_match),
    })
}

fn write_entry(out: &mut String, entry: &AppliedEntry) -> std::fmt::Result {
    write!(out, "{}:", entry.position.index)?;
    if entry.outcomes.is_empty() {
        write!(out, " nothing")?;
    }
    for (place, (_, outcome)) in entry.outcomes.iter().enumerate() {
        write!(out, "{} {}", if place == 0 { "" } else { ";" }, answer(outcome))?;
    }
    if let Some((change, state)) = &entry.conf_change {
        for single in change.get_changes() {
            let verb = match single.get_change_type() {
                ConfChangeType::AddNode => "add voter",
                ConfChangeType::AddLearnerNode => "add learner",
                ConfChangeType::RemoveNode => "remove",
            };
            write!(out, "; raft: {verb} {}", single.get_node_id())?;
        }
        write!(out, ", voters {:?} learners {:?}", state.get_voters(), state.get_learners())?;
    }
    writeln!(out)
}

fn answer(outcome: &Outcome) -> String {
    use outcome::Result as Is;
    match outcome.result.as_ref() {
        Some(Is::Revision(revision)) => format!("revision {revision}"),
        Some(Is::KeyNotFound(_)) => "key not found".into(),
        Some(Is::PreconditionFailed(revision)) => format!("precondition failed at {revision}"),
        Some(Is::Member(member)) => show_member(member),
        Some(Is::MemberNotFound(id)) => format!("no member {id}"),
        Some(Is::Conflict(why)) => format!("conflict: {why}"),
        None => "no answer".into(),
    }
}

fn show_member(member: &Member) -> String {
    let mut text = format!("member {} at {}", member.id, member.peer_url);
    if member.learner {
        text += ", learner";
    }
    if member.promote_when_caught_up {
        text += " to be promoted";
    }
    if member.incarnation != 0 {
        text += &format!(", incarnation {}", member.incarnation);
    }
    if !member.client_url.is_empty() {
        text += &format!(", clients {}", member.client_url);
    }
    text
}

fn members(machine: &StateMachine<MemoryEngine>) -> Answer {
    let members = machine.members();
    let mut out =
        format!("cluster {:016x}, removed {:?}\n", members.cluster_id, members.removed_ids);
    for member in &members.members {
        writeln!(out, "{}", show_member(member))?;
    }
    Ok(out)
}

fn show(record: &KeyRecord) -> String {
    let KeyRecord { create_revision, mod_revision, version, changes, .. } = record;
    let value = record.value.escape_ascii();
    format!(
        "\"{value}\" created {create_revision} modified {mod_revision} version {version} changes {changes}"
    )
}

fn dump(engine: &MemoryEngine) -> Answer {
    let mut out = String::new();
    for (key, value) in pairs(engine, Family::Current)? {
        let record = KeyRecord::decode(value)?;
        writeln!(out, "current \"{}\" {}", key.escape_ascii(), show(&record))?;
    }
    for (key, value) in pairs(engine, Family::Deleted)? {
        let Tombstone { revision, changes, .. } = Tombstone::decode(value)?;
        writeln!(out, "deleted \"{}\" at {revision} changes {changes}", key.escape_ascii())?;
    }
    for (place, value) in pairs(engine, Family::Changes)? {
        let (revision, sub) = keys::change_revision(&place)?;
        let change = Change::decode(value)?;
        let [before, after] = [&change.previous, &change.record].map(|record| {
            record
                .as_ref()
                .map_or_else(|| "none".into(), |r| format!("\"{}\"", r.value.escape_ascii()))
        });
        let (key, back) = (change.key.escape_ascii(), change.previous_revision);
        writeln!(out, "change {revision}.{sub} \"{key}\" {before} -> {after}, back to {back}")?;
    }
    for (place, _) in pairs(engine, Family::History)? {
        let (key, revision, sub) = keys::history_parts(&place)?;
        writeln!(out, "history \"{}\" {revision}.{sub}", key.escape_ascii())?;
    }
    Ok(if out.is_empty() { "empty".into() } else { out })
}

fn pairs(engine: &MemoryEngine, family: Family) -> Result<Vec<Pair>, Box<dyn Error>> {
    let everything = (Bound::Unbounded, Bound::Unbounded);
    Ok(engine.scan(family, everything).collect::<Result<_, _>>()?)
}
