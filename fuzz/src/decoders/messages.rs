//! Raft messages, given to a member at work.

use metastore::{
    error::Fatal,
    proto::{AddMember, Command, Put, RemoveMember, RequestId, command::Op},
    replica::{Event, validate},
};
use protobuf::Message as _;
use raft::eraftpb::Message;

use super::SET_ASIDE_BYTES;
use crate::{
    dice::Dice,
    mutate::mutate,
    raft_message::{Standing, encoded, message},
    rig::{Disk, Rig, Trouble},
    run::{Decoder, Verdict, within},
};

/// Memory for a member in which nothing much is written, and for what each byte of
/// a script can have sent to it.
pub const MEMORY: (usize, usize) = (1024, SET_ASIDE_BYTES + (4 << 20));

/// Bytes of choices in one script, about.
const TAPE_BYTES: usize = 2_000;

/// Things that happen in one script, at most.
const MAX_STEPS: u64 = 60;

/// Ticks after which a follower that hears nothing stands for election.
const LONG_TICKS: u64 = 20;

/// Runs a script: bytes that choose, step by step, what happens to a member.
/// Its peers' messages are made to fit where it stands, or nearly so.
pub struct Messages {
    /// Members of clusters of one, two and three, and one that just joined.
    disks: Vec<Disk>,
}

impl Messages {
    /// Members to start from.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn new() -> Result<Self, Fatal> {
        let mut disks: Vec<Disk> = (1..=3).map(Disk::found).collect::<Result<_, _>>()?;
        disks.push(Disk::join()?);
        Ok(Self { disks })
    }
}

impl Decoder for Messages {
    fn name(&self) -> &'static str {
        "messages"
    }

    fn input(&mut self, dice: &mut Dice) -> Vec<u8> {
        // Short ones of a few messages, too, of which none may pass.
        let most = if dice.percent(30) { 40 } else { TAPE_BYTES };
        let length = dice.index(most);
        dice.noise(length)
    }

    /// Accepted when a message of a peer passed, refused when none did.
    fn read(&mut self, input: &[u8]) -> Result<Verdict, String> {
        let dice = &mut Dice::of_tape(input);
        let disk = dice.pick(&self.disks).copy();
        let accepted = within(input.len(), MEMORY, || script(dice, disk))?;
        let accepted = accepted.map_err(|trouble| trouble.to_string())?;
        Ok(if accepted { Verdict::Accepted } else { Verdict::Refused })
    }
}

/// Runs a script to its end; whether a message of a peer passed.
fn script(dice: &mut Dice, disk: Disk) -> Result<bool, Trouble> {
    let mut rig = Rig::start(disk)?;
    let mut accepted = false;
    for sequence in 0..MAX_STEPS {
        if dice.is_spent() || rig.is_stopped {
            break;
        }
        accepted |= step(dice, &mut rig, sequence)?;
    }
    if !rig.is_stopped {
        rig.settle()?;
    }
    Ok(accepted)
}

/// One thing that happens; whether it was a message that passed.
fn step(dice: &mut Dice, rig: &mut Rig, sequence: u64) -> Result<bool, Trouble> {
    match dice.below(20) {
        0 => rig.handle(Event::Tick)?,
        1 => {
            for _ in 0..LONG_TICKS {
                rig.handle(Event::Tick)?;
            }
        }
        2 => rig.write()?,
        3 => drop(rig.apply()?),
        4 | 5 => rig.settle()?,
        6 => {
            let id = Some(RequestId { member: 1, nonce: 7, sequence });
            let op = Some(op(dice));
            rig.handle(Event::Propose(Command { id, op }))?;
        }
        7 => {
            let id = RequestId { member: 1, nonce: 7, sequence };
            let event = match dice.below(3) {
                0 => Event::TransferLeader(id, 1 + dice.below(4)),
                _ => Event::Read(id),
            };
            rig.handle(event)?;
        }
        8 => rig.end_transfers(dice.percent(50))?,
        9 => rig.handle(Event::Unreachable(1 + dice.below(4)))?,
        _ => return peer(dice, rig),
    }
    Ok(false)
}

fn op(dice: &mut Dice) -> Op {
    let id = 2 + dice.below(4);
    match dice.below(4) {
        0 => {
            let peer_url = format!("http://h:{id}");
            Op::AddMember(AddMember { id, peer_url, promote_when_caught_up: dice.percent(50) })
        }
        1 => Op::RemoveMember(RemoveMember { id: 1 + dice.below(4) }),
        _ => Op::Put(Put { key: "k".into(), value: "v".into(), ..Put::default() }),
    }
}

/// A message of a peer; whether it passed.
fn peer(dice: &mut Dice, rig: &mut Rig) -> Result<bool, Trouble> {
    let status = rig.status();
    let standing =
        Standing { term: status.role.term, last: status.last_index, commit: status.commit_index };
    let mut given = message(dice, standing);
    if dice.percent(15) {
        let mut bytes = encoded(&given);
        let other = encoded(&message(dice, standing));
        mutate(dice, &mut bytes, &other);
        let Ok(damaged) = Message::parse_from_bytes(&bytes) else { return Ok(false) };
        given = damaged;
    }
    let passes = validate::message(&given, 1).is_ok();
    rig.step(given)?;
    Ok(passes)
}
