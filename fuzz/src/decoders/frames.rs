//! Streams of raft messages, as the peer listener takes them apart.

use bytes::BytesMut;
use metastore::{fuzzing, transport::frame};
use protobuf::Message as _;
use raft::eraftpb::Message;
use tokio::runtime::{Builder, Runtime};

use super::{SET_ASIDE_BYTES, input};
use crate::{
    dice::Dice,
    raft_message::{Standing, message},
    run::{Decoder, Verdict, within},
};

/// Memory for a stream: its bytes come as chunks, are put together, and become
/// messages, whose entries take a hundred bytes each where they are empty.
pub const MEMORY: (usize, usize) = (128, SET_ASIDE_BYTES + (2 << 20));

/// Reads a stream of frames.
pub struct Frames {
    runtime: Runtime,
}

impl Frames {
    /// A reader.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { runtime: Builder::new_current_thread().enable_all().build()? })
    }
}

impl Decoder for Frames {
    fn name(&self) -> &'static str {
        "frames"
    }

    /// The first byte says in which chunks the rest comes.
    fn input(&mut self, dice: &mut Dice) -> Vec<u8> {
        let chunks = dice.byte();
        let mut stream = input(dice, &mut |dice| {
            let standing = Standing { term: 3, last: 40, commit: 30 };
            let mut bytes = BytesMut::new();
            for _ in 0..dice.below(5) {
                match dice.below(5) {
                    0 => bytes.extend_from_slice(&frame::KEEP_ALIVE),
                    // Only what is larger than a frame may be is not encoded.
                    _ => drop(frame::encode(&message(dice, standing), &mut bytes)),
                }
            }
            bytes.to_vec()
        });
        stream.insert(0, chunks);
        stream
    }

    fn read(&mut self, input: &[u8]) -> Result<Verdict, String> {
        let Some((&size, stream)) = input.split_first() else { return Ok(Verdict::Refused) };
        let size = if size == 0 { stream.len() } else { usize::from(size) };
        let chunks: Vec<Vec<u8>> = stream.chunks(size.max(1)).map(<[u8]>::to_vec).collect();
        let frames = within(stream.len(), MEMORY, || {
            self.runtime.block_on(fuzzing::frames(chunks, frame::MAX_FRAME_BYTES))
        })?;
        let Ok(frames) = frames else { return Ok(Verdict::Refused) };
        let mut read_bytes = 0;
        for content in &frames {
            read_bytes += 4 + content.len();
            if content.is_empty() {
                continue;
            }
            let decoded = within(content.len(), MEMORY, || frame::decode(content))?;
            let Ok(message) = decoded else { return Ok(Verdict::Refused) };
            let mut again = BytesMut::new();
            frame::encode(&message, &mut again).map_err(|error| error.to_string())?;
            let same = frame::decode(&again[4..]).map_err(|error| error.to_string())?;
            let mut twice = BytesMut::new();
            frame::encode(&same, &mut twice).map_err(|error| error.to_string())?;
            if twice != again && !has_unknown_fields(&message) {
                return Err(format!("{message:?} came back as {same:?}"));
            }
        }
        if read_bytes == stream.len() {
            Ok(Verdict::Accepted)
        } else {
            Err(format!("{read_bytes} of {} bytes came out in frames", stream.len()))
        }
    }
}

/// Whether it holds fields that this program does not know. They are for nobody
/// here, and may come back in another form.
fn has_unknown_fields(message: &Message) -> bool {
    let snapshot = message.get_snapshot();
    let metadata = snapshot.get_metadata();
    let conf_state = metadata.get_conf_state();
    let mut unknown = vec![
        message.get_unknown_fields(),
        snapshot.get_unknown_fields(),
        metadata.get_unknown_fields(),
        conf_state.get_unknown_fields(),
    ];
    unknown.extend(message.get_entries().iter().map(|entry| entry.get_unknown_fields()));
    unknown.into_iter().any(|fields| fields.iter().next().is_some())
}
