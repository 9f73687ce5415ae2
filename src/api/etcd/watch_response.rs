//! A `WatchResponse` whose events are encoded already.

use bytes::Bytes;
use prost::Message;

use crate::proto::etcdserverpb::ResponseHeader;

/// On the wire the same as `etcdserverpb.WatchResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct EncodedWatchResponse {
    #[prost(message, optional, tag = "1")]
    pub header: Option<ResponseHeader>,
    #[prost(int64, tag = "2")]
    pub watch_id: i64,
    #[prost(bool, tag = "3")]
    pub created: bool,
    #[prost(bool, tag = "4")]
    pub canceled: bool,
    #[prost(int64, tag = "5")]
    pub compact_revision: i64,
    #[prost(string, tag = "6")]
    pub cancel_reason: String,
    #[prost(bool, tag = "7")]
    pub fragment: bool,
    /// Each an encoded `mvccpb.Event`.
    #[prost(bytes = "bytes", repeated, tag = "11")]
    pub events: Vec<Bytes>,
}

/// Room for what an event needs around it: its tag and its length.
const EVENT_OVERHEAD_BYTES: usize = 8;

/// A response in pieces of at most so many bytes, as far as single events
/// allow; all but the last say that more follows.
pub(super) fn fragments(
    whole: EncodedWatchResponse,
    most: u64,
) -> impl Iterator<Item = EncodedWatchResponse> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let head = EncodedWatchResponse { events: Vec::new(), fragment: true, ..whole.clone() };
    let head_bytes = head.encoded_len();
    let mut pieces = Vec::new();
    let (mut piece, mut bytes) = (Vec::new(), head_bytes);
    for event in whole.events {
        let more = event.len() + EVENT_OVERHEAD_BYTES;
        if !piece.is_empty() && bytes + more > most {
            pieces.push(std::mem::take(&mut piece));
            bytes = head_bytes;
        }
        bytes += more;
        piece.push(event);
    }
    pieces.push(piece);
    let last = pieces.len() - 1;
    pieces.into_iter().enumerate().map(move |(place, events)| EncodedWatchResponse {
        events,
        fragment: place < last,
        ..head.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{
        etcdserverpb::WatchResponse,
        mvccpb::{Event, KeyValue, event::EventType},
    };

    fn event(key: &str) -> Event {
        let kv = KeyValue { key: key.to_owned().into(), mod_revision: 7, ..KeyValue::default() };
        Event { r#type: EventType::Delete.into(), kv: Some(kv), prev_kv: None }
    }

    fn response(keys: &[&str]) -> EncodedWatchResponse {
        EncodedWatchResponse {
            header: Some(ResponseHeader { revision: 9, ..ResponseHeader::default() }),
            watch_id: 3,
            compact_revision: 5,
            cancel_reason: "why".to_owned(),
            events: keys.iter().map(|key| event(key).encode_to_vec().into()).collect(),
            ..EncodedWatchResponse::default()
        }
    }

    #[test]
    fn it_reads_as_the_real_one() {
        let encoded = response(&["a", "b"]).encode_to_vec();
        let read = WatchResponse::decode(encoded.as_slice()).expect("the same on the wire");
        assert_eq!(read.events, [event("a"), event("b")]);
        assert_eq!((read.watch_id, read.compact_revision), (3, 5));
        assert_eq!((read.cancel_reason.as_str(), read.fragment), ("why", false));
        assert_eq!(read.header.map(|header| header.revision), Some(9));
        assert_eq!(read.encode_to_vec(), encoded);
    }

    #[test]
    fn pieces_are_small_and_in_order() {
        let keys: Vec<String> = (0..100).map(|n| format!("{n:0100}")).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let whole = response(&keys);
        let pieces: Vec<_> = fragments(whole.clone(), 1000).collect();
        assert!(pieces.len() > 10);
        let (last, others) = pieces.split_last().expect("pieces");
        assert!(!last.fragment && others.iter().all(|piece| piece.fragment));
        assert!(pieces.iter().all(|piece| piece.encoded_len() <= 1000 && piece.watch_id == 3));
        let events: Vec<_> = pieces.into_iter().flat_map(|piece| piece.events).collect();
        assert_eq!(events, whole.events);
        // An event that is too large for itself comes alone.
        assert_eq!(fragments(whole, 10).count(), 100);
        assert_eq!(fragments(response(&["a"]), 1000).collect::<Vec<_>>(), [response(&["a"])]);
    }
}
