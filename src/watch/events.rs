//! Consecutive events, as they are told.

use std::{
    ops::Deref,
    sync::{Arc, OnceLock},
};

use bytes::{Bytes, BytesMut};

use super::Event;

/// Consecutive events, shared by everybody who is told of just these.
pub type Events = Arc<EventRun>;

/// Some events, ascending.
#[derive(Debug, Default)]
pub struct EventRun {
    events: Vec<Arc<Event>>,
    /// Without and with the previous states, each made when first asked for.
    encoded: [OnceLock<Bytes>; 2],
}

impl EventRun {
    /// All of them, one after the other as [`Event::encoded`] gives each. The
    /// previous states are in it if asked for, as far as they may be told when
    /// `compacted` is the last compaction. Made once for all who ask, unless a
    /// compaction came between.
    pub fn encoded(&self, with_prev: bool, compacted: u64) -> Bytes {
        if let [event] = self.events.as_slice() {
            return event.encoded(with_prev && event.has_previous(compacted));
        }
        let made = || {
            let mut whole = BytesMut::new();
            whole.extend(self.encoded_each(with_prev, compacted));
            whole.freeze()
        };
        let is_whole = self.events.first().is_none_or(|first| first.revision > compacted);
        if with_prev && !is_whole {
            return made();
        }
        self.encoded[usize::from(with_prev)].get_or_init(made).clone()
    }

    /// As [`EventRun::encoded`], but each by itself.
    pub fn encoded_each(&self, with_prev: bool, compacted: u64) -> impl Iterator<Item = Bytes> {
        let has_previous = move |event: &Event| with_prev && event.has_previous(compacted);
        self.events.iter().map(move |event| event.encoded(has_previous(event)))
    }

    /// About how many bytes of memory they take, encodings included.
    pub fn weight(&self) -> usize {
        self.events.iter().map(|event| event.weight()).sum()
    }
}

impl Deref for EventRun {
    type Target = [Arc<Event>];

    fn deref(&self) -> &[Arc<Event>] {
        &self.events
    }
}

impl FromIterator<Arc<Event>> for EventRun {
    fn from_iter<I: IntoIterator<Item = Arc<Event>>>(events: I) -> Self {
        Self { events: events.into_iter().collect(), encoded: Default::default() }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::proto::{Change, KeyRecord, etcdserverpb::WatchResponse};

    fn event(revision: u64) -> Arc<Event> {
        let record =
            |value: &'static str| Some(KeyRecord { value: value.into(), ..Default::default() });
        let change = Change {
            key: "k".into(),
            record: record("new"),
            previous: record("old"),
            ..Change::default()
        };
        Arc::new(Event::new(revision, change))
    }

    fn told(bytes: Bytes) -> Vec<bool> {
        let told = WatchResponse::decode(bytes).unwrap();
        told.events.iter().map(|event| event.prev_kv.is_some()).collect()
    }

    #[test]
    fn a_run_is_encoded_once_for_all() {
        let run: EventRun = [event(4), event(5)].into_iter().collect();
        for with_prev in [false, true] {
            let encoded = run.encoded(with_prev, 3);
            assert_eq!(encoded.as_ptr(), run.encoded(with_prev, 0).as_ptr());
            assert_eq!(told(encoded.clone()), [with_prev; 2]);
            let each: Vec<u8> = run.encoded_each(with_prev, 3).flatten().collect();
            assert_eq!(encoded, each);
        }
    }

    #[test]
    fn what_is_compacted_is_not_told_though_it_was() {
        let run: EventRun = [event(4), event(5)].into_iter().collect();
        assert_eq!(told(run.encoded(true, 3)), [true, true]);
        assert_eq!(told(run.encoded(true, 4)), [false, true]);
        assert_eq!(told(run.encoded(true, 5)), [false, false]);
        assert_eq!(told(run.encoded(false, 5)), [false, false]);
        let alone: EventRun = [event(4)].into_iter().collect();
        assert_eq!(told(alone.encoded(true, 3)), [true]);
        assert_eq!(told(alone.encoded(true, 4)), [false]);
    }

    #[test]
    fn nothing_is_encoded_as_nothing() {
        assert_eq!(EventRun::default().encoded(true, 0), Bytes::new());
    }
}
