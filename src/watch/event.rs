//! One change of a key, as watchers are told of it.

use std::sync::OnceLock;

use bytes::Bytes;
use prost::Message;

use crate::proto::{
    Change, KeyRecord,
    etcdserverpb::WatchResponse,
    mvccpb::{self, KeyValue, event::EventType},
};

/// What an event costs in memory beside keys and values.
const EVENT_OVERHEAD_BYTES: usize = 256;

/// One change of a key, shared by everybody who is told of it.
#[derive(Debug)]
pub struct Event {
    /// The revision of the change.
    pub revision: u64,
    /// The change. Its previous state is present also when only some watchers
    /// may see it: see [`Event::encoded`].
    pub change: Change,
    /// Without and with the previous state, each made when first asked for.
    encoded: [OnceLock<Bytes>; 2],
}

impl Event {
    /// Wraps one change of a revision.
    pub fn new(revision: u64, change: Change) -> Self {
        Self { revision, change, encoded: Default::default() }
    }

    /// The key that changed.
    pub fn key(&self) -> &Bytes {
        &self.change.key
    }

    /// Whether the key was deleted; otherwise it was put.
    pub fn is_delete(&self) -> bool {
        self.change.record.is_none()
    }

    /// Whether there is a previous state that may be told when `compacted` is
    /// the last compaction: the revision before the event must still be known.
    pub fn has_previous(&self, compacted: u64) -> bool {
        self.change.previous.is_some() && self.revision > compacted
    }

    /// A `WatchResponse` with nothing but the event, in protobuf's encoding: what
    /// is written before and after it is merged with it. Made once for all who
    /// ask. The previous state is in it only if asked for.
    pub fn encoded(&self, with_prev: bool) -> Bytes {
        let with_prev = with_prev && self.change.previous.is_some();
        let made = || {
            let events = vec![self.to_event(with_prev)];
            WatchResponse { events, ..WatchResponse::default() }.encode_to_vec().into()
        };
        self.encoded[usize::from(with_prev)].get_or_init(made).clone()
    }

    /// The event in etcd's words. The previous state is in it only if asked
    /// for.
    pub fn to_event(&self, with_prev: bool) -> mvccpb::Event {
        let Change { key, record, previous, .. } = &self.change;
        let (kind, kv) = match record {
            Some(record) => (EventType::Put, key_value(key, record)),
            None => {
                let mod_revision = signed(self.revision);
                let kv = KeyValue { key: key.clone(), mod_revision, ..KeyValue::default() };
                (EventType::Delete, kv)
            }
        };
        let previous = if mutant!(WrongPrevious) {
            record.as_ref().or(previous.as_ref())
        } else {
            previous.as_ref()
        };
        let previous = previous.filter(|_| with_prev);
        let prev_kv = previous.map(|record| key_value(key, record));
        mvccpb::Event { r#type: kind.into(), kv: Some(kv), prev_kv }
    }

    /// About how many bytes of memory the event takes, encodings included.
    pub fn weight(&self) -> usize {
        change_weight(&self.change)
    }
}

/// About how many bytes of memory the event of a change takes: the change, its
/// encoding, and that again among others.
pub(super) fn change_weight(change: &Change) -> usize {
    let value = |record: &Option<KeyRecord>| record.as_ref().map_or(0, |r| r.value.len());
    let bytes = change.key.len() + value(&change.record) + value(&change.previous);
    EVENT_OVERHEAD_BYTES + 3 * bytes
}

fn key_value(key: &Bytes, record: &KeyRecord) -> KeyValue {
    KeyValue {
        key: key.clone(),
        create_revision: signed(record.create_revision),
        mod_revision: signed(record.mod_revision),
        version: signed(record.version),
        value: record.value.clone(),
        lease: record.lease,
    }
}

/// Etcd's messages have signed revisions.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(mod_revision: u64, version: u64, value: &'static str) -> KeyRecord {
        KeyRecord {
            create_revision: 2,
            mod_revision,
            version,
            lease: 7,
            value: Bytes::from_static(value.as_bytes()),
            sub: 3,
            changes: 5,
        }
    }

    fn event(record: Option<KeyRecord>, previous: Option<KeyRecord>) -> Event {
        let key = Bytes::from_static(b"k");
        Event::new(4, Change { key, record, previous, previous_revision: 3, previous_sub: 0 })
    }

    fn decoded(event: &Event, with_prev: bool) -> mvccpb::Event {
        let mut told = WatchResponse::decode(event.encoded(with_prev)).unwrap();
        let event = told.events.pop().unwrap();
        assert_eq!(told, WatchResponse::default(), "and nothing else");
        event
    }

    #[test]
    fn put_is_told_with_its_previous_state_on_request() {
        let event = event(Some(record(4, 3, "new")), Some(record(3, 2, "old")));
        let with = decoded(&event, true);
        assert_eq!(with, event.to_event(true));
        assert_eq!(with.r#type(), EventType::Put);
        let kv = with.kv.unwrap();
        assert_eq!((kv.create_revision, kv.mod_revision, kv.version, kv.lease), (2, 4, 3, 7));
        assert_eq!((&kv.key[..], &kv.value[..]), (&b"k"[..], &b"new"[..]));
        let previous = with.prev_kv.unwrap();
        assert_eq!((previous.mod_revision, previous.version), (3, 2));
        assert_eq!(&previous.value[..], b"old");
        let without = decoded(&event, false);
        assert_eq!(without.prev_kv, None);
        assert_eq!(without.kv, Some(kv));
    }

    #[test]
    fn deletion_is_told_by_key_and_revision_alone() {
        let event = event(None, Some(record(3, 2, "old")));
        assert!(event.is_delete());
        let told = decoded(&event, false);
        assert_eq!(told.r#type(), EventType::Delete);
        let expected =
            KeyValue { key: event.key().clone(), mod_revision: 4, ..KeyValue::default() };
        assert_eq!((told.kv, told.prev_kv), (Some(expected), None));
    }

    #[test]
    fn encoding_is_made_once() {
        let created = event(Some(record(4, 1, "new")), None);
        let first = created.encoded(true);
        assert_eq!(first.as_ptr(), created.encoded(false).as_ptr());
        let replaced = event(Some(record(4, 1, "new")), Some(record(3, 1, "old")));
        assert_ne!(replaced.encoded(true), replaced.encoded(false));
        assert_eq!(replaced.encoded(true).as_ptr(), replaced.encoded(true).as_ptr());
    }

    #[test]
    fn previous_state_is_told_while_the_revision_before_is_known() {
        let event = event(None, Some(record(3, 2, "old")));
        assert!(event.has_previous(0) && event.has_previous(3));
        assert!(!event.has_previous(4) && !event.has_previous(9));
    }
}
