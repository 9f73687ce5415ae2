//! What raft alone does not keep: orders that only show when the disk or the
//! state machine is slow.

use std::sync::Arc;

use protobuf::Message as _;
use raft::{
    StateRole,
    eraftpb::{ConfState, Entry, EntryType, Message, MessageType},
};
use slog::{Discard, Logger, o};

use super::{Effect, Event, Options, Replica, Restored};
use crate::{
    machine::{self, StateMachine, command},
    proto::{
        AddMember, Command, Founder, FoundingRecord, Identity, LogPosition, RemoveMember,
        RequestId, command::Op,
    },
    raftlog::{self, LogWriter, Persist, RaftLog, Recovered},
    storage::memory::MemoryEngine,
};

/// A replica whose disk and state machine move only when told.
struct Rig {
    raft: MemoryEngine,
    replica: Replica<MemoryEngine>,
    machine: StateMachine<MemoryEngine>,
    writer: LogWriter<MemoryEngine>,
    effects: Vec<Effect>,
    sequence: u64,
}

impl Rig {
    /// Member 1 of a newly founded cluster of `founders`.
    fn found(founders: u64) -> Self {
        let record = FoundingRecord {
            founders: (1..=founders)
                .map(|id| Founder { id, peer_url: format!("http://h:{id}"), incarnation: id })
                .collect(),
        };
        let (raft, state) = (MemoryEngine::default(), MemoryEngine::default());
        StateMachine::bootstrap(&state, &record).unwrap();
        let cluster_id = machine::cluster_id(&record);
        let identity = Identity { cluster_id, member_id: 1, incarnation: 1 };
        raftlog::found(&raft, &identity, &raftlog::state_dir(1)).unwrap();
        Self::start(raft, state)
    }

    fn start(raft: MemoryEngine, state: MemoryEngine) -> Self {
        let recovered = Recovered::read(&raft).unwrap();
        let machine = StateMachine::open(state).unwrap();
        let (members, applied) = (machine.members(), machine.position());
        let conf_state = machine::conf_state(&members);
        let log = RaftLog::open(raft.clone(), &recovered, conf_state, &applied).unwrap();
        let logger = Logger::root(Discard, o!());
        let (options, alarms) = (Options::new(1, 7, 7), machine.alarms());
        let replica = Replica::new(options, log, applied, members, alarms, logger).unwrap();
        let writer = LogWriter::new(raft.clone(), &recovered);
        Self { raft, replica, machine, writer, effects: Vec::new(), sequence: 0 }
    }

    fn handle(&mut self, event: Event) {
        self.replica.handle(event, &mut self.effects).unwrap();
        self.replica.flush(&mut self.effects).unwrap();
    }

    fn step(&mut self, message: Message) {
        self.handle(Event::Message(Box::new(message)));
    }

    fn propose(&mut self, op: Op) {
        self.sequence += 1;
        let id = Some(RequestId { member: 1, nonce: 7, sequence: self.sequence });
        self.handle(Event::Propose(Command { id, op: Some(op) }));
    }

    fn take_persists(&mut self) -> Vec<Persist> {
        let (persists, others) = std::mem::take(&mut self.effects)
            .into_iter()
            .partition::<Vec<_>, _>(|effect| matches!(effect, Effect::Persist(_)));
        self.effects = others;
        let persists = persists.into_iter().filter_map(|effect| match effect {
            Effect::Persist(persist) => Some(persist),
            _ => None,
        });
        persists.collect()
    }

    fn write(&mut self, persists: &[Persist]) {
        self.writer.write(persists).unwrap();
        if let Some(last) = persists.last() {
            self.handle(Event::Persisted(last.number));
        }
    }

    fn take_applies(&mut self) -> Vec<Vec<Entry>> {
        let mut applies = Vec::new();
        self.effects.retain_mut(|effect| match effect {
            Effect::Apply(entries) => {
                applies.push(std::mem::take(entries));
                false
            }
            _ => true,
        });
        applies
    }

    /// Writes and applies until nothing is left to do.
    fn settle(&mut self) {
        loop {
            let persists = self.take_persists();
            self.write(&persists);
            let applies = self.take_applies();
            if persists.is_empty() && applies.is_empty() {
                return;
            }
            for entries in applies {
                let batch = self.machine.apply(&entries).unwrap();
                self.handle(Event::Applied(batch));
            }
        }
    }

    /// Messages sent since the last call.
    fn take_sent(&mut self) -> Vec<Message> {
        let mut sent = Vec::new();
        self.effects.retain_mut(|effect| match effect {
            Effect::Send(message) => {
                sent.push(std::mem::take(message));
                false
            }
            _ => true,
        });
        sent
    }

    fn role(&self) -> StateRole {
        self.replica.status().role.role
    }
}

fn message(kind: MessageType, term: u64) -> Message {
    let mut message = Message { from: 2, to: 1, term, ..Message::default() };
    message.set_msg_type(kind);
    message
}

fn add(id: u64) -> Op {
    let peer_url = format!("http://h:{id}");
    Op::AddMember(AddMember { id, peer_url, promote_when_caught_up: false })
}

#[test]
fn no_election_starts_while_an_installed_snapshot_is_being_opened() {
    let mut rig = Rig::found(3);
    let position = LogPosition { index: 50, term: 2 };
    let mut snapshot = message(MessageType::MsgSnapshot, 2);
    let metadata = snapshot.mut_snapshot().mut_metadata();
    (metadata.index, metadata.term) = (position.index, position.term);
    metadata.set_conf_state(ConfState::from((vec![1, 2, 3], vec![])));
    rig.step(snapshot);
    let persists = rig.take_persists();
    assert!(persists.iter().any(|persist| persist.install == Some(position)));
    rig.write(&persists);
    assert!(rig.effects.iter().any(|effect| matches!(effect, Effect::Restore(_))));

    // The leader falls silent, or hands over, before the state is opened.
    for _ in 0..40 {
        rig.handle(Event::Tick);
    }
    rig.step(message(MessageType::MsgTimeoutNow, 2));
    assert_eq!(rig.role(), StateRole::Follower);

    let members = Arc::clone(&rig.replica.members);
    let alarms = Arc::clone(&rig.replica.alarms);
    rig.handle(Event::Restored(Restored { position, members, alarms }));
    for _ in 0..40 {
        rig.handle(Event::Tick);
    }
    assert_eq!(rig.role(), StateRole::PreCandidate);
}

#[test]
fn a_sole_voter_tells_its_learners_of_no_term_that_is_not_durable() {
    let mut rig = Rig::found(1);
    rig.handle(Event::Tick);
    rig.settle();
    rig.propose(add(2));
    rig.settle();
    assert!(rig.take_sent().iter().any(|message| message.to == 2), "it leads and replicates");

    let mut rig = Rig::start(rig.raft, rig.machine.engine().clone());
    rig.handle(Event::Tick);
    assert_eq!(rig.role(), StateRole::Leader);
    rig.propose(add(3));
    assert_eq!(rig.take_sent(), [], "a crash now would let it lead this term twice");
    let persists = rig.take_persists();
    rig.write(&persists);
    assert!(!rig.take_sent().is_empty());
}

#[test]
fn a_configuration_change_is_committed_durably_once_applied() {
    let mut rig = Rig::found(1);
    rig.handle(Event::Tick);
    rig.settle();
    rig.propose(add(2));
    rig.settle();
    let applied = rig.machine.position().index;

    // Nothing else was written since, and the state database is lost.
    let recovered = Recovered::read(&rig.raft).unwrap();
    assert!(recovered.hard_state.commit >= applied, "{:?}", recovered.hard_state);
}

#[test]
fn a_question_for_the_leader_is_not_passed_on_in_anothers_name() {
    let mut rig = Rig::found(3);
    rig.step(message(MessageType::MsgHeartbeat, 2));
    rig.settle();
    rig.take_sent();
    let mut question = message(MessageType::MsgReadIndex, 0);
    question.from = 3;
    question.mut_entries().push(Entry { data: "context".into(), ..Entry::default() });
    rig.step(question);
    assert_eq!(rig.take_sent(), []);
}

#[test]
fn a_member_hears_of_its_removal_only_once_the_leader_cannot_forget_it() {
    let mut rig = Rig::found(2);
    rig.step(message(MessageType::MsgTimeoutNow, 2));
    rig.settle();
    rig.take_sent();
    rig.step(message(MessageType::MsgRequestVoteResponse, 3));
    rig.settle();
    let acknowledge = |rig: &mut Rig| {
        let mut answer = message(MessageType::MsgAppendResponse, 3);
        answer.index = rig.replica.status().last_index;
        rig.step(answer);
    };
    acknowledge(&mut rig);
    rig.settle();
    rig.propose(Op::RemoveMember(RemoveMember { id: 2 }));
    rig.settle();
    let removal = rig.replica.status().last_index;
    rig.take_sent();

    acknowledge(&mut rig);
    assert_eq!(rig.replica.status().commit_index, removal);
    assert!(rig.take_sent().iter().all(|message| message.commit < removal));
    let persists = rig.take_persists();
    rig.write(&persists);
    assert!(Recovered::read(&rig.raft).unwrap().hard_state.commit >= removal);
    assert!(rig.take_sent().iter().any(|message| message.commit >= removal));
}

#[test]
fn a_leader_that_commits_its_own_removal_leaves_on_the_word_of_another() {
    let mut rig = Rig::found(2);
    // Member 2 led in term 2 and proposed the removal, but did not commit it.
    let op = Op::RemoveMember(RemoveMember { id: 1 });
    let command =
        Command { id: Some(RequestId { member: 2, nonce: 7, sequence: 1 }), op: Some(op) };
    let change = command::conf_change(&command).unwrap();
    let mut removal = Entry { index: 2, term: 2, ..Entry::default() };
    removal.set_entry_type(EntryType::EntryConfChangeV2);
    removal.data = change.write_to_bytes().unwrap().into();
    removal.context = command::encode_command(&command).into();
    let mut append = message(MessageType::MsgAppend, 2);
    (append.index, append.log_term, append.commit) = (1, 1, 1);
    append.mut_entries().push(removal);
    rig.step(append);
    rig.settle();

    rig.step(message(MessageType::MsgTimeoutNow, 2));
    rig.settle();
    rig.step(message(MessageType::MsgRequestVoteResponse, 3));
    rig.settle();
    let mut answer = message(MessageType::MsgAppendResponse, 3);
    answer.index = 3;
    rig.step(answer);
    rig.settle();
    assert_eq!((rig.role(), rig.replica.status().commit_index), (StateRole::Leader, 3));
    assert_eq!(rig.machine.position().index, 1, "member 2 may not know, and needs this vote");

    let mut heartbeat = message(MessageType::MsgHeartbeat, 4);
    heartbeat.commit = 3;
    rig.step(heartbeat);
    rig.settle();
    assert!(rig.effects.iter().any(|effect| matches!(effect, Effect::Removed)));
}

#[test]
fn a_leader_that_was_replaced_learns_so_from_whatever_it_sends() {
    let mut rig = Rig::found(3);
    let append = |from: u64, term: u64| {
        let mut append = message(MessageType::MsgAppend, term);
        (append.from, append.index, append.log_term) = (from, 1, 1);
        append.mut_entries().push(Entry { index: 2, term, ..Entry::default() });
        append
    };
    let mut committed = append(2, 3);
    committed.commit = 2;
    rig.step(committed);
    rig.settle();
    assert_eq!(rig.replica.status().commit_index, 2);
    rig.take_sent();

    // Member 3 led before, did not get its entry through, and comes back.
    rig.step(append(3, 2));
    let sent = rig.take_sent();
    assert!(sent.iter().any(|message| message.to == 3 && message.term == 3), "{sent:?}");
    assert_eq!(rig.replica.status().commit_index, 2);

    // In the same term it is no latecomer, and raft must not see it.
    let mut contradiction = append(2, 3);
    contradiction.log_term = 1;
    contradiction.mut_entries()[0].term = 2;
    rig.step(contradiction);
    assert_eq!(rig.take_sent(), []);
}

#[test]
fn a_vote_that_was_not_asked_for_yet_makes_no_leader() {
    let mut rig = Rig::found(3);
    let mut append = message(MessageType::MsgAppend, 2);
    (append.index, append.log_term) = (1, 1);
    append.mut_entries().push(Entry { index: 2, term: 2, ..Entry::default() });
    rig.step(append);
    rig.take_sent();
    // The entry is not on disk when the leader hands over, so that no request
    // for votes has left.
    rig.step(message(MessageType::MsgTimeoutNow, 2));
    assert_eq!(rig.role(), StateRole::Candidate);
    let vote = message(MessageType::MsgRequestVoteResponse, 3);
    rig.step(vote.clone());
    assert_eq!((rig.role(), rig.take_sent()), (StateRole::Candidate, vec![]));

    rig.settle();
    assert!(rig.take_sent().iter().any(|it| it.get_msg_type() == MessageType::MsgRequestVote));
    rig.step(vote);
    assert_eq!(rig.role(), StateRole::Leader);
}

#[test]
fn a_sole_voter_does_not_stand_again_while_its_first_entry_is_being_written() {
    let mut rig = Rig::found(1);
    rig.handle(Event::Tick);
    assert_eq!(rig.role(), StateRole::Leader);
    // Of a later term, which would end this one and begin an election at once.
    let hand_over = message(MessageType::MsgTimeoutNow, 9);
    rig.step(hand_over.clone());
    assert_eq!(rig.replica.status().role.term, 2);

    rig.settle();
    rig.step(hand_over);
    let role = rig.replica.status().role;
    assert_eq!((role.role, role.term), (StateRole::Leader, 10));
}

#[test]
fn a_snapshot_of_another_entry_than_the_committed_one_is_not_taken_over() {
    let mut rig = Rig::found(3);
    let mut snapshot = message(MessageType::MsgSnapshot, 3);
    let metadata = snapshot.mut_snapshot().mut_metadata();
    (metadata.index, metadata.term) = (1, 2);
    metadata.set_conf_state(ConfState::from((vec![1, 2, 3], vec![])));
    rig.step(snapshot);
    assert!(rig.take_persists().iter().all(|persist| persist.install.is_none()));
    assert_eq!((rig.role(), rig.replica.status().role.term), (StateRole::Follower, 1));
}
