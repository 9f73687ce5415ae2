//! Snapshots as one member sends them to another.

use std::{fs, path::Path};

use metastore::{
    fuzzing,
    proto::{SnapshotFile, SnapshotHeader},
};
use prost::Message as _;
use protobuf::Message as _;
use raft::eraftpb::{ConfState, Message, MessageType};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use super::{frames::MEMORY, input, scratch};
use crate::{
    dice::Dice,
    raft_message::{Standing, message},
    run::{Decoder, Verdict, within},
};

/// The format of an image.
const VERSION: u32 = metastore::storage::keys::STATE_FORMAT_VERSION;

/// Names of files, some of which lead elsewhere.
const NAMES: [&str; 12] = [
    "000009.sst",
    "CURRENT",
    "MANIFEST-000005",
    "OPTIONS-7",
    "a",
    "../up",
    "/root",
    "a/b",
    ".",
    "..",
    "",
    "\0",
];

/// Receives transfers into a directory.
pub struct Transfers {
    runtime: Runtime,
    outside: TempDir,
}

impl Transfers {
    /// A receiver.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new() -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().max_blocking_threads(1).enable_all().build()?;
        let outside = scratch()?;
        fs::create_dir(outside.path().join("snap"))?;
        Ok(Self { runtime, outside })
    }

    fn receive(&self, stream: &[u8], chunk: usize) -> Result<Verdict, String> {
        let parent = self.outside.path().join("snap");
        let chunks: Vec<Vec<u8>> = stream.chunks(chunk).map(<[u8]>::to_vec).collect();
        let received = within(stream.len(), MEMORY, || {
            self.runtime.block_on(fuzzing::receive(chunks, &parent, 2, 1))
        })?;
        let verdict = match received {
            Ok((message, dir)) => {
                if message.get_msg_type() != MessageType::MsgSnapshot || !dir.starts_with(&parent) {
                    return Err(format!("received {message:?} into {}", dir.display()));
                }
                fs::remove_dir_all(&dir).map_err(|error| error.to_string())?;
                Verdict::Accepted
            }
            Err(refused) if refused.is_of_sender => Verdict::Refused,
            Err(failed) => return Err(failed.why),
        };
        if entries(&parent)? != 0 || entries(self.outside.path())? != 1 {
            return Err("something is left behind".to_owned());
        }
        Ok(verdict)
    }
}

fn entries(dir: &Path) -> Result<usize, String> {
    fs::read_dir(dir).map(Iterator::count).map_err(|error| error.to_string())
}

impl Decoder for Transfers {
    fn name(&self) -> &'static str {
        "transfers"
    }

    /// The first byte says in which chunks the rest comes.
    fn input(&mut self, dice: &mut Dice) -> Vec<u8> {
        let chunks = dice.byte();
        let mut stream = input(dice, &mut transfer);
        stream.insert(0, chunks);
        stream
    }

    fn read(&mut self, input: &[u8]) -> Result<Verdict, String> {
        let Some((&size, stream)) = input.split_first() else { return Ok(Verdict::Refused) };
        let size = if size < 16 { stream.len().max(1) } else { usize::from(size) * 16 };
        self.receive(stream, size)
    }
}

/// A transfer, nearly always a right one.
pub fn transfer(dice: &mut Dice) -> Vec<u8> {
    let mut names: Vec<String> = Vec::new();
    for _ in 0..dice.below(4) {
        let name = if dice.percent(90) { dice.pick(&NAMES[..5]) } else { dice.pick(&NAMES) };
        if !names.iter().any(|other| other == name) || dice.percent(5) {
            names.push((*name).to_owned());
        }
    }
    if dice.percent(95) {
        names.sort();
    }
    let contents: Vec<Vec<u8>> = names
        .iter()
        .map(|_| {
            let length = dice.index(300);
            dice.noise(length)
        })
        .collect();
    let sizes = contents
        .iter()
        .map(|content| if dice.percent(97) { content.len() as u64 } else { dice.magnitude() });
    let files = names.into_iter().zip(sizes).map(|(name, size)| SnapshotFile { name, size });
    let files = files.collect();
    let version = if dice.percent(95) { VERSION } else { dice.magnitude() as u32 };
    let header = SnapshotHeader { version, message: snapshot(dice).into(), files };
    let header = header.encode_to_vec();
    let mut stream = (header.len() as u32).to_be_bytes().to_vec();
    stream.extend(header);
    for content in contents {
        stream.extend_from_slice(&content);
        stream.extend_from_slice(&Sha256::digest(&content));
    }
    stream
}

fn snapshot(dice: &mut Dice) -> Vec<u8> {
    let standing = Standing { term: 3, last: 40, commit: 30 };
    let mut message = if dice.percent(10) { message(dice, standing) } else { Message::default() };
    if !message.has_snapshot() {
        message.set_msg_type(MessageType::MsgSnapshot);
        (message.from, message.to, message.term) = (2, 1, 3);
        let metadata = message.mut_snapshot().mut_metadata();
        (metadata.index, metadata.term) = (dice.magnitude(), dice.magnitude());
        metadata.set_conf_state(ConfState::from((vec![1, 2, 3], vec![])));
    }
    // What cannot be encoded is empty, which is an input too.
    message.write_to_bytes().unwrap_or_default()
}
