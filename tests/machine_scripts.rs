//! Golden scripts of the state machine: what commands answer, and what they
//! leave in the state database. `UPDATE_GOLDENFILES=1` rewrites the answers.
//!
//! A command is an entry and a batch of its own, unless it is tagged:
//! `[entry]` makes it share the entry of the next one, `[batch]` the batch.

#[path = "machine_scripts/operations.rs"]
mod operations;
#[path = "machine_scripts/show.rs"]
mod show;

use std::{error::Error, path::Path};

use goldenscript::Context;
use metastore::{
    machine::{StateMachine, command},
    proto::{Command, Founder, FoundingRecord, RequestId, command::Op},
    storage::memory::MemoryEngine,
};
use raft::eraftpb::{Entry, EntryType};

#[test]
fn conditions() {
    run("conditions");
}

#[test]
fn compaction() {
    run("compaction");
}

#[test]
fn damage() {
    run("damage");
}

#[test]
fn etcd_puts() {
    run("etcd_puts");
}

#[test]
fn leases() {
    run("leases");
}

#[test]
fn membership() {
    run("membership");
}

#[test]
fn ranges() {
    run("ranges");
}

#[test]
fn restart() {
    run("restart");
}

#[test]
fn revisions() {
    run("revisions");
}

#[test]
fn space() {
    run("space");
}

#[test]
fn transactions() {
    run("transactions");
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
        lease: Option<i64>,
        /// Grants the lease first.
        #[arg(key)]
        grant: Option<i64>,
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
    /// Sets a key as etcd does, and gives back what was there.
    EtcdPut {
        key: String,
        value: Option<String>,
        #[arg(key)]
        lease: Option<i64>,
        #[arg(key, optional)]
        ignore_value: bool,
        #[arg(key, optional)]
        ignore_lease: bool,
    },
    /// Removes the keys of a range, and gives them back.
    DeleteRange {
        key: String,
        end: Option<String>,
    },
    /// Conditions and operations, each in one string:
    /// `if TARGET KEY RELATION VALUE [END]`, then or else
    /// `put KEY VALUE [LEASE]`, `range KEY [END [REVISION]]`, `delete KEY [END]`,
    /// `keep KEY` (a put that leaves the value).
    Txn(Vec<String>),
    Compact(u64),
    Grant(i64, i64),
    Revoke(i64),
    Renew(Vec<i64>),
    /// Term, then lease and renewal.
    Expire(u64, i64, u64),
    /// Term, then lease, renewal and seconds left.
    Checkpoint(u64, i64, u64, i64),
    /// Member and kind.
    Raise(u64, String),
    Disarm(u64, String),
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
    /// A read outside of the log.
    Range {
        key: String,
        end: Option<String>,
        #[arg(key, optional)]
        revision: i64,
        #[arg(key, optional)]
        limit: i64,
        #[arg(key)]
        order: Option<String>,
        #[arg(key)]
        target: Option<String>,
        #[arg(key, optional)]
        keys_only: bool,
        #[arg(key, optional)]
        count_only: bool,
        #[arg(key, optional)]
        min_mod: i64,
        #[arg(key, optional)]
        max_mod: i64,
        #[arg(key, optional)]
        min_create: i64,
        #[arg(key, optional)]
        max_create: i64,
        #[arg(key)]
        max_bytes: Option<u64>,
    },
    /// The changes from a revision on, at most so many bytes.
    Changes(u64, Option<usize>),
    Leases,
    Alarms,
    /// Prints everything the database holds.
    Dump,
    Members,
    Flush,
    /// Drops from the disk what nobody needs any more.
    Forget,
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
        match operations::operation(step)? {
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
        let data = command::encode_payload(std::mem::take(&mut self.entry));
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
            show::write_entry(&mut out, entry)?;
        }
        Ok(out)
    }

    fn inspect(&mut self, step: &Step) -> Answer {
        let machine = self.machine()?;
        let engine = match step {
            Step::Get(key) => {
                let record = machine.view().get(key.as_bytes())?;
                return Ok(record.map_or_else(|| "none".to_owned(), |record| show::record(&record)));
            }
            Step::Hash => return Ok(machine.view().hash()?.to_string()),
            Step::Range { max_bytes, .. } => {
                let request = operations::range(step)?;
                let max_bytes = max_bytes.unwrap_or(u64::MAX);
                return Ok(match machine.view().range(&request, max_bytes)? {
                    Ok(response) => show::range(&response),
                    Err(refused) => format!("refused: {}", refused.as_str_name()),
                });
            }
            Step::Changes(from, max_bytes) => {
                let max_bytes = max_bytes.unwrap_or(usize::MAX);
                return Ok(match machine.view().changes(*from, max_bytes)? {
                    Ok(page) => show::changes(&page),
                    Err(refused) => format!("refused: {}", refused.as_str_name()),
                });
            }
            Step::Leases => return show::leases(&machine.view()),
            Step::Alarms => return Ok(show::alarms(&machine.view().alarms()?)),
            Step::Members => return show::members(&machine.members()),
            Step::Dump => return show::dump(machine.engine(), machine.view().compacted()?),
            Step::Forget => {
                machine.engine().forget();
                return Ok(String::new());
            }
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
