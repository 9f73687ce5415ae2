//! A `WatchResponse` whose events are encoded already.

use bytes::{Bytes, BytesMut};
use prost::Message;

use crate::proto::etcdserverpb::WatchResponse;

/// A `WatchResponse` in two parts, which its receiver merges.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct EncodedWatchResponse {
    /// All of it but the events.
    pub head: WatchResponse,
    /// A `WatchResponse` with nothing but the events, encoded.
    pub events: Bytes,
}

impl From<WatchResponse> for EncodedWatchResponse {
    fn from(head: WatchResponse) -> Self {
        Self { head, events: Bytes::new() }
    }
}

/// A response with encoded events in pieces of at most so many bytes, as far as
/// single events allow; all but the last say that more follows.
pub(super) fn fragments(
    head: WatchResponse,
    events: impl Iterator<Item = Bytes>,
    most: u64,
) -> Vec<EncodedWatchResponse> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let more = WatchResponse { fragment: true, ..head.clone() };
    let most_events = most.saturating_sub(more.encoded_len());
    let mut pieces = Vec::new();
    let mut piece = BytesMut::new();
    for event in events {
        if !piece.is_empty() && piece.len() + event.len() > most_events {
            let events = piece.split().freeze();
            pieces.push(EncodedWatchResponse { head: more.clone(), events });
        }
        piece.extend_from_slice(&event);
    }
    pieces.push(EncodedWatchResponse { head, events: piece.freeze() });
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{
        etcdserverpb::ResponseHeader,
        mvccpb::{Event, KeyValue, event::EventType},
    };

    fn event(key: &str) -> Event {
        let kv = KeyValue { key: key.to_owned().into(), mod_revision: 7, ..KeyValue::default() };
        Event { r#type: EventType::Delete.into(), kv: Some(kv), prev_kv: None }
    }

    fn encoded(events: &[Event]) -> impl Iterator<Item = Bytes> {
        events.iter().map(|event| {
            let events = vec![event.clone()];
            WatchResponse { events, ..WatchResponse::default() }.encode_to_vec().into()
        })
    }

    fn head() -> WatchResponse {
        WatchResponse {
            header: Some(ResponseHeader { revision: 9, ..ResponseHeader::default() }),
            watch_id: 3,
            compact_revision: 5,
            cancel_reason: "why".to_owned(),
            ..WatchResponse::default()
        }
    }

    fn encoded_whole(response: &EncodedWatchResponse) -> Vec<u8> {
        [&response.head.encode_to_vec(), &response.events[..]].concat()
    }

    fn read(response: &EncodedWatchResponse) -> WatchResponse {
        let bytes = encoded_whole(response);
        WatchResponse::decode(bytes.as_slice()).expect("the same on the wire")
    }

    #[test]
    fn it_reads_as_the_real_one() {
        let events = [event("a"), event("b")];
        let whole =
            EncodedWatchResponse { head: head(), events: encoded(&events).flatten().collect() };
        assert_eq!(read(&whole), WatchResponse { events: events.to_vec(), ..head() });
        assert_eq!(read(&head().into()), head());
    }

    #[test]
    fn pieces_are_small_and_in_order() {
        let events: Vec<Event> = (0..100).map(|n| event(&format!("{n:0100}"))).collect();
        let pieces = fragments(head(), encoded(&events), 1000);
        assert!(pieces.len() > 10);
        assert!(pieces.iter().all(|piece| encoded_whole(piece).len() <= 1000));
        let pieces: Vec<WatchResponse> = pieces.iter().map(read).collect();
        let (last, others) = pieces.split_last().expect("pieces");
        assert!(!last.fragment && others.iter().all(|piece| piece.fragment));
        assert!(pieces.iter().all(|piece| piece.watch_id == 3));
        let told: Vec<Event> = pieces.into_iter().flat_map(|piece| piece.events).collect();
        assert_eq!(told, events);
        // An event that is too large for itself comes alone.
        assert_eq!(fragments(head(), encoded(&events), 10).len(), 100);
        let one = fragments(head(), encoded(&events[..1]), 1000);
        assert_eq!(
            one.iter().map(read).collect::<Vec<_>>(),
            [WatchResponse { events: events[..1].to_vec(), ..head() }]
        );
    }
}
