//! A request is answered by its own command and by no other.

use std::sync::Arc;

use metastore::{
    machine::{self, StateMachine, command},
    proto::{Command, Founder, FoundingRecord, Identity, Put, RequestId, command::Op},
    raftlog::{self, LogWriter, Persist, RaftLog, Recovered},
    replica::{Answer, Effect, Event, Options, Replica},
    storage::memory::MemoryEngine,
};
use raft::eraftpb::{Entry, HardState};
use slog::{Discard, Logger, o};

fn request(member: u64, nonce: u64, sequence: u64) -> RequestId {
    RequestId { member, nonce, sequence }
}

fn put(id: RequestId, value: &str) -> Command {
    let value = value.to_owned().into();
    let op = Op::Put(Put { key: "key".into(), value, condition: None, ..Put::default() });
    Command { id: Some(id), op: Some(op) }
}

/// A sole member whose log holds these commands, committed and not applied.
fn member(logged: &[Command]) -> (Replica<MemoryEngine>, Runtime) {
    let (raft, state) = (MemoryEngine::new(), MemoryEngine::new());
    let founder = Founder { id: 1, peer_url: "http://127.0.0.1:1".to_owned(), incarnation: 11 };
    let record = FoundingRecord { founders: vec![founder] };
    let identity =
        Identity { cluster_id: machine::cluster_id(&record), member_id: 1, incarnation: 11 };
    StateMachine::bootstrap(&state, &record).expect("a founding");
    raftlog::found(&raft, &identity, "state-1").expect("a founding");
    let entries: Vec<Entry> = (2..)
        .zip(logged)
        .map(|(index, command)| Entry {
            index,
            term: 1,
            data: command::encode_payload(vec![command.clone()]).into(),
            ..Entry::default()
        })
        .collect();
    let commit = entries.last().map_or(1, |entry| entry.index);
    let hard_state = Some(HardState { term: 1, commit, ..HardState::default() });
    let recovered = Recovered::read(&raft).expect("a sound database");
    LogWriter::new(raft.clone(), &recovered)
        .write(&[Persist { hard_state, entries, sync: true, ..Persist::default() }])
        .expect("memory takes every write");

    let recovered = Recovered::read(&raft).expect("a sound database");
    let machine = StateMachine::open(state).expect("a sound database");
    let (members, applied) = (machine.members(), machine.position());
    let conf_state = machine::conf_state(&members);
    let log = RaftLog::open(raft.clone(), &recovered, conf_state, &applied).expect("a log");
    let options = Options::new(1, 7, 1);
    let logger = Logger::root(Discard, o!());
    let alarms = machine.alarms();
    let replica = Replica::new(options, log, applied, Arc::clone(&members), alarms, logger);
    let writer = LogWriter::new(raft, &recovered);
    let runtime = Runtime { machine, writer, effects: Vec::new(), held: Vec::new() };
    (replica.expect("a replica"), runtime)
}

/// Carries effects out, except that what is to be applied is held back.
struct Runtime {
    machine: StateMachine<MemoryEngine>,
    writer: LogWriter<MemoryEngine>,
    effects: Vec<Effect>,
    held: Vec<Vec<Entry>>,
}

impl Runtime {
    /// Feeds an event, and what follows from it; gives the answers.
    fn feed(&mut self, replica: &mut Replica<MemoryEngine>, event: Event) -> Vec<Told> {
        let mut answers = Vec::new();
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            replica.handle(event, &mut self.effects).expect("a sound replica");
            replica.flush(&mut self.effects).expect("a sound replica");
            for effect in self.effects.drain(..) {
                match effect {
                    Effect::Persist(persist) => {
                        let number = persist.number;
                        self.writer.write(&[persist]).expect("memory takes every write");
                        events.insert(0, Event::Persisted(number));
                    }
                    Effect::Apply(entries) => self.held.push(entries),
                    Effect::Answer(id, answer) => answers.push((id, answer)),
                    _ => {}
                }
            }
        }
        answers
    }

    /// Applies what was held back; gives the answers.
    fn apply(&mut self, replica: &mut Replica<MemoryEngine>) -> Vec<Told> {
        let mut answers = Vec::new();
        while !self.held.is_empty() {
            let entries = self.held.remove(0);
            let batch = self.machine.apply(&entries).expect("entries of the log");
            answers.extend(self.feed(replica, Event::Applied(batch)));
        }
        answers
    }
}

type Told = (RequestId, Answer);

#[test]
fn another_request_with_the_same_sequence_number_completes_no_waiter() {
    let own = request(1, 7, 1);
    // Of another member, of this member's previous start, of both.
    let foreign = [request(2, 7, 1), request(1, 6, 1), request(2, 6, 1)];
    let logged: Vec<Command> = foreign.iter().map(|id| put(*id, "foreign")).collect();
    let (mut replica, mut runtime) = member(&logged);
    assert_eq!(runtime.feed(&mut replica, Event::Tick), []);

    // It leads already, and the foreign commands are still to be applied.
    let waiting = runtime.feed(&mut replica, Event::Propose(put(own, "own")));
    assert_eq!(waiting, [], "neither refused nor answered before it is applied");
    assert_eq!(replica.status().pending_proposals, 1);
    let first = runtime.held.remove(0);
    assert_eq!(first.len(), logged.len(), "the foreign commands alone");
    let batch = runtime.machine.apply(&first).expect("entries of the log");
    let outcomes: Vec<RequestId> =
        batch.entries.iter().flat_map(|entry| entry.outcomes.iter().map(|(id, _)| *id)).collect();
    assert_eq!(outcomes, foreign);
    assert_eq!(runtime.feed(&mut replica, Event::Applied(batch)), []);
    assert_eq!(replica.status().pending_proposals, 1);

    let answers = runtime.apply(&mut replica);
    assert!(
        matches!(&answers[..], [(id, Answer::Outcome(_))] if *id == own),
        "only its own command answers it, once: {answers:?}"
    );
    assert_eq!(replica.status().pending_proposals, 0);
    let record = runtime.machine.view().get(b"key").expect("a read").expect("the key");
    assert_eq!((&record.value[..], record.version), (&b"own"[..], 4));
}
