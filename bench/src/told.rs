//! What watchers read of a `WatchResponse`.
//!
//! Events come by the million, and what the clients take of the processors is
//! missing to the servers that are measured. So the message is walked through where
//! it is, and of an event nothing is kept but what is counted.

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::failure::Trouble;

/// The fields of etcd's messages that are read, by their numbers in rpc.proto and
/// kv.proto.
mod tag {
    pub const RESPONSE_WATCH_ID: u32 = 2;
    pub const RESPONSE_CREATED: u32 = 3;
    pub const RESPONSE_CANCELED: u32 = 4;
    pub const RESPONSE_CANCEL_REASON: u32 = 6;
    pub const RESPONSE_EVENTS: u32 = 11;
    pub const EVENT_KV: u32 = 2;
    pub const KV_MOD_REVISION: u32 = 3;
    pub const KV_VALUE: u32 = 5;
}

/// A `WatchResponse` without its events.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Told<'a> {
    /// The watch.
    pub watch_id: u64,
    /// Whether it was made by this.
    pub created: bool,
    /// Whether it has ended.
    pub canceled: bool,
    /// Why, in UTF-8.
    pub cancel_reason: &'a [u8],
}

/// What is read of an event.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// The revision of the change.
    pub revision: u64,
    /// The value after it.
    pub value: &'a [u8],
}

impl<'a> Told<'a> {
    /// Reads a message; its events are given away one by one.
    ///
    /// # Errors
    /// When it is not a `WatchResponse`.
    pub fn read(message: &'a [u8], mut event: impl FnMut(Event<'a>)) -> Result<Self, Trouble> {
        let mut told = Self::default();
        walk(message, |tag, field| {
            match (tag, field) {
                (tag::RESPONSE_WATCH_ID, Field::Number(id)) => told.watch_id = id,
                (tag::RESPONSE_CREATED, Field::Number(created)) => told.created = created != 0,
                (tag::RESPONSE_CANCELED, Field::Number(canceled)) => told.canceled = canceled != 0,
                (tag::RESPONSE_CANCEL_REASON, Field::Bytes(why)) => told.cancel_reason = why,
                (tag::RESPONSE_EVENTS, Field::Bytes(bytes)) => event(read_event(bytes)?),
                _ => {}
            }
            Ok(())
        })?;
        Ok(told)
    }
}

fn read_event(message: &[u8]) -> Result<Event<'_>, Trouble> {
    let mut event = Event::default();
    walk(message, |tag, field| match (tag, field) {
        (tag::EVENT_KV, Field::Bytes(kv)) => walk(kv, |tag, field| {
            match (tag, field) {
                (tag::KV_MOD_REVISION, Field::Number(revision)) => event.revision = revision,
                (tag::KV_VALUE, Field::Bytes(value)) => event.value = value,
                _ => {}
            }
            Ok(())
        }),
        _ => Ok(()),
    })?;
    Ok(event)
}

/// A field as it is on the wire.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Goes through the fields of a message.
fn walk<'a>(
    mut rest: &'a [u8],
    mut take: impl FnMut(u32, Field<'a>) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(&mut rest).map_err(Trouble::broken)?;
        match wire_type {
            WireType::Varint => {
                let number = decode_varint(&mut rest).map_err(Trouble::broken)?;
                take(tag, Field::Number(number))?;
            }
            WireType::LengthDelimited => {
                let length = decode_varint(&mut rest).map_err(Trouble::broken)?;
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                let parts = rest.split_at_checked(length);
                let (bytes, after) = parts.ok_or_else(|| Trouble::broken("it breaks off"))?;
                rest = after;
                take(tag, Field::Bytes(bytes))?;
            }
            other => {
                let skipped = skip_field(other, tag, &mut rest, DecodeContext::default());
                skipped.map_err(Trouble::broken)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use metastore_proto::{
        etcdserverpb::{ResponseHeader, WatchResponse},
        mvccpb,
    };
    use prost::Message as _;

    use super::*;

    fn event(revision: i64, value: &'static str) -> mvccpb::Event {
        let kv = mvccpb::KeyValue {
            key: "key".into(),
            create_revision: 3,
            mod_revision: revision,
            version: 4,
            value: value.into(),
            lease: 5,
        };
        mvccpb::Event { kv: Some(kv.clone()), prev_kv: Some(kv), ..mvccpb::Event::default() }
    }

    fn message() -> Vec<u8> {
        let response = WatchResponse {
            header: Some(ResponseHeader { revision: 8, ..ResponseHeader::default() }),
            watch_id: 9,
            created: true,
            canceled: true,
            compact_revision: 6,
            cancel_reason: "reason".to_owned(),
            fragment: true,
            events: vec![event(7, "one"), event(8, "two"), mvccpb::Event::default()],
        };
        response.encode_to_vec()
    }

    #[test]
    fn what_is_read_is_what_was_told() {
        let message = message();
        let mut events = Vec::new();
        let told = Told::read(&message, |event| events.push(event)).expect("sound");
        let reason = b"reason";
        let whole = Told { watch_id: 9, created: true, canceled: true, cancel_reason: reason };
        assert_eq!(told, whole);
        let event = |revision, value| Event { revision, value };
        assert_eq!(events, [event(7, &b"one"[..]), event(8, b"two"), Event::default()]);
    }

    #[test]
    fn what_breaks_off_is_refused_or_shorter() {
        let message = message();
        let count = |message| {
            let mut count = 0;
            Told::read(message, |_| count += 1).map(|_| count)
        };
        for length in 0..message.len() {
            // Between two fields it cannot be told from a shorter message.
            assert!(count(&message[..length]).map_or(true, |events| events < 3), "{length}");
        }
        assert!(count(&message[..message.len() - 1]).is_err());
    }
}
