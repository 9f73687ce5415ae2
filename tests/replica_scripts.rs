//! Golden scripts of the replica: what a small cluster does, effect by effect.
//! `UPDATE_GOLDENFILES=1` rewrites the output, which then has to be read.
//!
//! Nothing happens by itself: messages wait in the network, writes and applies
//! in each node's queues, until a command moves them. A replica is flushed
//! after every event, unless the command is tagged `[and]`: then the flush
//! comes with the node's next event, as for events that arrive together.

#[path = "replica_scripts/cluster.rs"]
mod cluster;
#[path = "replica_scripts/show.rs"]
mod show;

use std::{error::Error, path::Path};

use cluster::{Cluster, Which};
use goldenscript::Context;
use metastore::{
    proto::{
        AddMember, BindIncarnation, LogPosition, PromoteMember, Put, RemoveMember, SetAlarm,
        command::Op, etcdserverpb::AlarmType,
    },
    replica::Event,
};
use protobuf::ProtobufEnum as _;
use raft::eraftpb::{Entry, Message, MessageType};

/// Makes each named script a test.
macro_rules! scripts {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                let path = Path::new("tests/scripts/replica").join(stringify!($name));
                goldenscript::run(&mut Runner::default(), path).expect("a script that runs");
            }
        )*

        #[test]
        fn every_script_is_run() {
            let mut run = vec![$(stringify!($name).to_owned()),*];
            let dir = std::fs::read_dir("tests/scripts/replica").expect("the scripts are there");
            let name = |file: std::io::Result<std::fs::DirEntry>| {
                file.expect("a readable directory").file_name().to_string_lossy().into_owned()
            };
            let mut present: Vec<String> = dir.map(name).collect();
            run.sort_unstable();
            present.sort_unstable();
            assert_eq!(run, present);
        }
    };
}

scripts! {
    accused
    announce
    append
    apply_stall
    batching
    cancel
    disk_stall
    election
    forwarding
    learner
    malformed
    membership
    overload
    overwritten
    reads
    remove_leader
    remove_member
    restart
    single_voter
    snapshot
    snapshot_in_flight
    spoken
    stop
    transfer
    witness
}

#[derive(goldenscript::Command)]
enum Step {
    /// Founds a cluster and starts its nodes. Example: cluster nodes=3
    Cluster {
        #[arg(key)]
        nodes: u64,
        #[arg(key)]
        snapshot_count: Option<u64>,
    },
    /// Starts a node that has no data yet; adding it is another matter.
    Join(u64),
    /// Lets time pass for a node. Example: tick 1 10
    Tick(u64, Option<u64>),
    /// Lets time pass until the node does something.
    Campaign(u64),
    /// A moment has passed in which nothing happened.
    Announce(u64),
    /// Proposes commands that arrive together. Example: put 1 a=1 b=2
    Put {
        node: u64,
        #[arg(key, many)]
        pairs: Vec<(String, String)>,
    },
    /// Proposes commands that another node passed on. Example: pass 1 2 a=1
    Pass {
        node: u64,
        asker: u64,
        #[arg(key, many)]
        pairs: Vec<(String, String)>,
    },
    /// Proposes a value of this many MiB.
    Fill {
        node: u64,
        key: String,
        mib: usize,
    },
    /// Asks for reads that arrive together.
    Read(u64, Option<u64>),
    /// Adds a member, over the node named first. Example: add 1 4 learner=true
    Add {
        node: u64,
        member: u64,
        #[arg(key, optional)]
        learner: bool,
    },
    Bind(u64, u64),
    Promote(u64, u64),
    Remove(u64, u64),
    /// Asks a node to make a member the leader. Example: transfer 1 2
    Transfer(u64, u64),
    /// Nobody waits for a request any longer. Example: cancel 1 w1
    Cancel(u64, String),
    /// Raises the CORRUPT alarm for a member. Example: accuse 1 3
    Accuse(u64, u64),
    /// Disarms it.
    Clear(u64, u64),
    /// A node hears which protocol a member speaks. Example: speaks 1 3 2
    Speaks(u64, u64, u32),
    /// The node's process was asked to stop.
    Stop(u64),
    /// The log thread writes and confirms all that waits, or so many of it.
    Persist(u64, Option<usize>),
    /// The apply thread does all that waits, or so much of it.
    Apply(u64, Option<usize>),
    /// Delivers messages. Example: deliver Append from=1 to=2 count=1
    Deliver {
        kind: Option<String>,
        #[arg(key)]
        from: Option<u64>,
        #[arg(key)]
        to: Option<u64>,
        #[arg(key)]
        count: Option<usize>,
        /// So many are overtaken.
        #[arg(key, optional)]
        skip: usize,
        /// They arrive now, and once more with a later delivery.
        #[arg(key, optional)]
        twice: bool,
    },
    /// Loses messages.
    Drop {
        kind: Option<String>,
        #[arg(key)]
        from: Option<u64>,
        #[arg(key)]
        to: Option<u64>,
        #[arg(key)]
        count: Option<usize>,
    },
    /// A message that no replica sent; positions are index@term. Example:
    /// forge Append from=2 to=1 term=3 at=4@2 entries="5@2,6@3" commit=4
    Forge {
        kind: String,
        #[arg(key)]
        from: u64,
        #[arg(key)]
        to: u64,
        #[arg(key, optional)]
        term: u64,
        #[arg(key)]
        at: Option<String>,
        #[arg(key)]
        entries: Option<String>,
        #[arg(key, optional)]
        commit: u64,
    },
    /// Writes, applies, delivers and announces until nothing is left, between
    /// these nodes or all.
    Stabilize(#[arg(optional)] Vec<u64>),
    /// Power loss: what was not synced is gone.
    Crash(u64),
    /// The process ends at once; what was written stays.
    Kill(u64),
    Start(u64),
    Get(u64, String),
    Status(#[arg(optional)] Vec<u64>),
}

type Answer<T = ()> = Result<T, Box<dyn Error>>;

#[derive(Default)]
struct Runner {
    cluster: Cluster,
}

impl goldenscript::Runner for Runner {
    type Command = Step;

    fn run(&mut self, step: &Step, context: &Context) -> Answer<String> {
        self.cluster.together = context.tags.contains("and");
        self.run_step(step)?;
        Ok(std::mem::take(&mut self.cluster.out))
    }
}

impl Runner {
    fn run_step(&mut self, step: &Step) -> Answer {
        let cluster = &mut self.cluster;
        match step {
            Step::Cluster { nodes, snapshot_count } => cluster.found(*nodes, *snapshot_count),
            Step::Join(node) => cluster.join(*node),
            Step::Tick(node, times) => {
                (0..times.unwrap_or(1)).try_for_each(|_| cluster.handle(*node, Event::Tick))
            }
            Step::Announce(node) => cluster.handle(*node, Event::Announce),
            Step::Campaign(node) => cluster.campaign(*node),
            Step::Read(node, count) => cluster.read(*node, count.unwrap_or(1)),
            Step::Transfer(node, to) => cluster.transfer(*node, *to),
            Step::Cancel(node, name) => cluster.cancel(*node, name),
            Step::Speaks(node, member, newest) => {
                cluster.handle(*node, Event::Speaks { member: *member, newest: *newest })
            }
            Step::Stop(node) => cluster.handle(*node, Event::StepDown),
            Step::Persist(node, count) => cluster.persist(*node, count.unwrap_or(usize::MAX)),
            Step::Apply(node, count) => cluster.apply(*node, count.unwrap_or(usize::MAX)),
            Step::Deliver { kind, from, to, count, skip, twice } => {
                let which = which(kind, *from, *to, *count)?;
                cluster.deliver(&Which { skip: *skip, ..which }, *twice)
            }
            Step::Drop { kind, from, to, count } => cluster.lose(&which(kind, *from, *to, *count)?),
            Step::Stabilize(nodes) => cluster.stabilize(nodes),
            Step::Crash(node) => cluster.crash(*node, false),
            Step::Kill(node) => cluster.crash(*node, true),
            Step::Start(node) => cluster.start(*node),
            Step::Get(node, key) => cluster.get(*node, key),
            Step::Status(nodes) => cluster.status(nodes),
            _ => self.send(step),
        }
    }

    /// The steps that make a command or a message of their own.
    fn send(&mut self, step: &Step) -> Answer {
        let cluster = &mut self.cluster;
        let (node, op) = match step {
            Step::Put { node, pairs } => {
                let puts = pairs.iter().map(|(key, value)| put(key, value.as_bytes()));
                return cluster.propose(*node, "w", puts);
            }
            Step::Pass { node, asker, pairs } => {
                let puts = pairs.iter().map(|(key, value)| put(key, value.as_bytes()));
                return cluster.propose_for(*node, *asker, puts);
            }
            Step::Fill { node, key, mib } => {
                return cluster.propose(*node, "w", [put(key, &vec![b'.'; mib << 20])]);
            }
            Step::Add { node, member, learner } => {
                let add = AddMember {
                    id: *member,
                    peer_url: format!("n{member}"),
                    promote_when_caught_up: !learner,
                };
                (node, Op::AddMember(add))
            }
            Step::Bind(node, id) => {
                let incarnation = cluster::incarnation(*id);
                (node, Op::BindIncarnation(BindIncarnation { id: *id, incarnation }))
            }
            Step::Promote(node, id) => (node, Op::PromoteMember(PromoteMember { id: *id })),
            Step::Remove(node, id) => (node, Op::RemoveMember(RemoveMember { id: *id })),
            Step::Accuse(node, id) => (node, corrupt(*id, true)),
            Step::Clear(node, id) => (node, corrupt(*id, false)),
            Step::Forge { kind, from, to, term, at, entries, commit } => {
                let mut message = Message { from: *from, to: *to, term: *term, ..<_>::default() };
                let at = at.as_deref().map_or(Ok(LogPosition::default()), position)?;
                (message.index, message.log_term, message.commit) = (at.index, at.term, *commit);
                message.set_msg_type(message_type(kind)?);
                let names = entries.as_deref().unwrap_or_default().split_terminator(',');
                for place in names.map(position) {
                    let LogPosition { index, term } = place?;
                    message.mut_entries().push(Entry { index, term, ..Entry::default() });
                }
                return cluster.handle(*to, Event::Message(Box::new(message)));
            }
            _ => return Err("not a step".into()),
        };
        cluster.propose(*node, "m", [op])
    }
}

fn put(key: &str, value: &[u8]) -> Op {
    let (key, value) = (key.to_owned().into(), value.to_owned().into());
    Op::Put(Put { key, value, condition: None, ..Put::default() })
}

fn corrupt(member: u64, active: bool) -> Op {
    Op::SetAlarm(SetAlarm { member, alarm: AlarmType::Corrupt.into(), active })
}

fn which(
    kind: &Option<String>,
    from: Option<u64>,
    to: Option<u64>,
    count: Option<usize>,
) -> Answer<Which> {
    let kind = kind.as_deref().map(message_type).transpose()?;
    Ok(Which { kind, from, to, skip: 0, count: count.unwrap_or(usize::MAX) })
}

/// The kind of message of this name, which is raft's without its "Msg".
fn message_type(name: &str) -> Answer<MessageType> {
    let kinds = (0..).map_while(MessageType::from_i32);
    let mut named = kinds.filter(|kind| format!("{kind:?}") == format!("Msg{name}"));
    named.next().ok_or_else(|| format!("there are no {name} messages").into())
}

/// Reads index@term.
fn position(text: &str) -> Answer<LogPosition> {
    let (index, term) = text.split_once('@').ok_or("a position is index@term")?;
    Ok(LogPosition { index: index.parse()?, term: term.parse()? })
}
