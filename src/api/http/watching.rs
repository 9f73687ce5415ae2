//! `GET /{key}?watch`: changes as they happen, as JSON lines or as server-sent
//! events.
//!
//! A line, or an event, is one revision with all its changes: whoever has read
//! it has all of that revision and can go on with the next one.

use std::{convert::Infallible, io::Write, sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{
        HeaderMap, HeaderName, HeaderValue,
        header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE},
        request::Parts,
    },
    response::Response,
};
use bytes::Bytes;
use futures_util::stream;
use serde::{Serialize, Serializer, ser::SerializeMap};
use tokio::time::timeout;

use super::{
    Api,
    keys::REVISION,
    listing::{JSON_LINES, prefix_range},
    options::Options,
    pair::{entry, record},
    refusal::Refusal,
};
use crate::{
    api::gate::RouteLabel,
    node::{Handle, WatchControl, WatchNotices},
    proto::{KeyRecord, Refused},
    watch::{Event, Notice, Spec},
};

/// Silence after which something is said that means nothing, in time before
/// connections count as idle.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// The revision a browser has seen last, when it connects again.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

const EVENT_STREAM: &str = "text/event-stream";

const KNOWN: &str = "a watch knows prefix, revision and prev";

/// The only watch of its stream.
const WATCH: i64 = 0;

/// What a client asked for.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    spec: Spec,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    JsonLines,
    ServerSentEvents,
}

impl Request {
    fn parse(key: Bytes, mut options: Options, headers: &HeaderMap) -> Result<Self, Refusal> {
        let prefix = options.flag("prefix")?;
        let prev_kv = options.flag("prev")?;
        let asked = options.revision()?;
        options.finish(KNOWN)?;
        // Whoever connects again does so with the address of the first time.
        let start = last_event_id(headers)?.or(asked).unwrap_or_default();
        let (key, range_end) = if prefix { prefix_range(&key) } else { (key, Bytes::new()) };
        let spec = Spec {
            key,
            range_end,
            start_revision: start.unsigned_abs(),
            prev_kv,
            progress_notify: true,
            ..Spec::default()
        };
        let form = if wants_events(headers) { Form::ServerSentEvents } else { Form::JsonLines };
        Ok(Self { spec, form })
    }
}

/// The first revision that is not known yet, by Last-Event-ID.
fn last_event_id(headers: &HeaderMap) -> Result<Option<i64>, Refusal> {
    let Some(id) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    if id.is_empty() {
        return Ok(None);
    }
    let revision = id.to_str().ok().and_then(|id| id.parse::<i64>().ok());
    match revision.and_then(|revision| revision.checked_add(1)) {
        Some(next) if next > 0 => Ok(Some(next)),
        _ => Err(Refusal::bad_request(
            "invalid_event_id",
            "Last-Event-ID is not a revision; send the id of the last event, or none",
        )),
    }
}

fn wants_events(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT).iter().filter_map(|accept| accept.to_str().ok()).any(|accept| {
        accept.split(',').any(|range| {
            let media_type = range.split(';').next().unwrap_or_default().trim();
            media_type.eq_ignore_ascii_case(EVENT_STREAM)
        })
    })
}

/// Answers `?watch` once the watch is there.
pub(super) async fn answer(
    api: &Api,
    key: Bytes,
    options: Options,
    head: &Parts,
) -> Result<Response, Refusal> {
    let Request { spec, form } = Request::parse(key, options, &head.headers)?;
    let start = spec.start_revision;
    // What is gone already is better refused than begun.
    let compacted = api.handle.view()?.compacted().map_err(|fatal| api.fail(fatal))?;
    if start > 0 && start < compacted {
        return Err(Refused::Compacted.into());
    }
    let prev = spec.prev_kv;
    let (control, mut notices) = api.handle.watch()?;
    control.open(WATCH, spec).await;
    let revision = match notices.next().await {
        Some(Notice::Created { revision, .. }) => revision,
        Some(Notice::Refused { why, .. }) => return Err(Refusal::overloaded(why.to_string())),
        _ => {
            api.handle.check_sound()?;
            return Err(Refusal::unavailable("the node is stopping; watch another member"));
        }
    };
    let writer = Writer { form, prev };
    // A watch of the past has not told of this revision yet.
    let first = if start == 0 { writer.progress(revision) } else { writer.silence() };
    let handle = api.handle.clone();
    let watching = Watching { writer, notices, handle, _control: control };
    let body = stream::unfold((Some(first), Some(watching)), async |(first, watching)| {
        let mut watching = watching?;
        if let Some(first) = first {
            return Some((Ok(first), (None, Some(watching))));
        }
        let (bytes, goes_on) = watching.next().await;
        Some((Ok::<_, Infallible>(bytes), (None, goes_on.then_some(watching))))
    });
    let mut response = Response::new(Body::from_stream(body));
    response.extensions_mut().insert(RouteLabel("/{key}?watch"));
    let headers = response.headers_mut();
    let content_type = match form {
        Form::JsonLines => JSON_LINES,
        Form::ServerSentEvents => HeaderValue::from_static(EVENT_STREAM),
    };
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REVISION, HeaderValue::from(revision));
    Ok(response)
}

/// A watch under way.
struct Watching {
    writer: Writer,
    notices: WatchNotices,
    handle: Handle,
    /// Dropped, it ends the watch.
    _control: WatchControl,
}

impl Watching {
    /// What is to be written next, and whether anything may follow.
    async fn next(&mut self) -> (Bytes, bool) {
        let Ok(notice) = timeout(KEEP_ALIVE, self.notices.next()).await else {
            return (self.writer.silence(), true);
        };
        let end = |refusal: Refusal| (self.writer.end(&refusal), false);
        match notice {
            Some(Notice::Events { compacted, events, .. }) => {
                (self.writer.events(&events, compacted), true)
            }
            Some(Notice::Progress { revision, .. }) => (self.writer.progress(revision), true),
            Some(Notice::Compacted { .. }) => end(Refused::Compacted.into()),
            Some(Notice::Created { .. }) => (self.writer.silence(), true),
            Some(Notice::Refused { why, .. }) => end(Refusal::overloaded(why.to_string())),
            Some(Notice::Cancelled { .. }) | None => end(self.ended()),
        }
    }

    /// Why nothing more is told.
    fn ended(&self) -> Refusal {
        match self.handle.check_sound() {
            Err(corrupt) => corrupt.into(),
            Ok(()) => Refusal::unavailable(
                "the node is stopping; go on at another member, from the revision after the last",
            ),
        }
    }
}

/// Writes what a watch is told.
#[derive(Debug, Clone, Copy)]
struct Writer {
    form: Form,
    /// With the state before each change.
    prev: bool,
}

impl Writer {
    /// Changes, each revision as a line or an event of its own.
    fn events(self, events: &[Arc<Event>], compacted: u64) -> Bytes {
        let mut bytes = Vec::new();
        for changes in events.chunk_by(|one, other| one.revision == other.revision) {
            let revision = changes[0].revision;
            // What was before may be told while it can be read.
            let prev = self.prev && revision > compacted;
            let events = changes.iter().map(|event| ChangeView { event, prev }).collect();
            self.line(&mut bytes, &RevisionView { revision, events });
        }
        bytes.into()
    }

    fn line(self, bytes: &mut Vec<u8>, view: &RevisionView<'_>) {
        if self.form == Form::ServerSentEvents {
            // Writing into memory cannot fail, here and below.
            let _ = write!(bytes, "id: {}\ndata: ", view.revision);
        }
        let _ = serde_json::to_writer(&mut *bytes, view);
        bytes.extend_from_slice(self.line_end());
    }

    fn line_end(self) -> &'static [u8] {
        match self.form {
            Form::JsonLines => b"\n",
            Form::ServerSentEvents => b"\n\n",
        }
    }

    /// Everything up to this revision has been told. As an event it is only an
    /// id, which a browser remembers and tells nobody.
    fn progress(self, revision: u64) -> Bytes {
        match self.form {
            Form::JsonLines => {
                let mut bytes = Vec::new();
                self.line(&mut bytes, &RevisionView { revision, events: Vec::new() });
                bytes.into()
            }
            Form::ServerSentEvents => format!("id: {revision}\n\n").into(),
        }
    }

    /// Something that means nothing.
    fn silence(self) -> Bytes {
        match self.form {
            Form::JsonLines => Bytes::from_static(b"\n"),
            Form::ServerSentEvents => Bytes::from_static(b":\n\n"),
        }
    }

    /// The last line.
    fn end(self, refusal: &Refusal) -> Bytes {
        match self.form {
            Form::JsonLines => refusal.line().into(),
            Form::ServerSentEvents => {
                [b"event: end\ndata: ".as_slice(), &refusal.line(), b"\n"].concat().into()
            }
        }
    }
}

/// One revision.
#[derive(Serialize)]
struct RevisionView<'a> {
    revision: u64,
    events: Vec<ChangeView<'a>>,
}

struct ChangeView<'a> {
    event: &'a Event,
    prev: bool,
}

impl Serialize for ChangeView<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let change = &self.event.change;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("type", if change.record.is_some() { "put" } else { "delete" })?;
        entry(&mut map, "key", "key_base64", &change.key)?;
        match &change.record {
            Some(state) => record(&mut map, state)?,
            None => map.serialize_entry("mod_revision", &self.event.revision)?,
        }
        if let Some(previous) = change.previous.as_ref().filter(|_| self.prev) {
            map.serialize_entry("prev", &State(previous))?;
        }
        map.end()
    }
}

/// The state of a key whose name stands elsewhere.
struct State<'a>(&'a KeyRecord);

impl Serialize for State<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        record(&mut map, self.0)?;
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Change;

    fn request(query: &str, headers: &[(HeaderName, &str)]) -> Result<Request, &'static str> {
        let mut options = Options::parse(Some(query)).expect("well-formed");
        assert_eq!(options.flag("watch"), Ok(true));
        let value = |value: &str| HeaderValue::from_str(value).expect("header text");
        let headers = headers.iter().map(|(name, text)| (name.clone(), value(text))).collect();
        Request::parse("a/".into(), options, &headers).map_err(|refusal| refusal.code())
    }

    #[test]
    fn a_watch_is_of_one_key_unless_told() {
        let one = request("watch", &[]).expect("well-formed");
        assert_eq!((&one.spec.key[..], &one.spec.range_end[..]), (&b"a/"[..], &b""[..]));
        assert_eq!((one.spec.start_revision, one.spec.prev_kv), (0, false));
        assert_eq!(one.form, Form::JsonLines);
        let all = request("watch&prefix&prev&revision=7", &[]).expect("well-formed");
        assert_eq!((&all.spec.key[..], &all.spec.range_end[..]), (&b"a/"[..], &b"a0"[..]));
        assert_eq!((all.spec.start_revision, all.spec.prev_kv), (7, true));
        for (query, code) in [
            ("watch&revision=0", "invalid_option"),
            ("watch&revision=-1", "invalid_option"),
            ("watch&prefix=a", "invalid_option"),
            ("watch&list", "unknown_option"),
            ("watch&limit=1", "unknown_option"),
        ] {
            assert_eq!(request(query, &[]), Err(code), "{query}");
        }
    }

    #[test]
    fn the_last_event_id_wins_over_the_address() {
        let start = |id: &str| {
            let request = request("watch&revision=5", &[(LAST_EVENT_ID, id)])?;
            Ok(request.spec.start_revision)
        };
        assert_eq!(start("41"), Ok(42));
        assert_eq!(start("0"), Ok(1));
        assert_eq!(start(""), Ok(5));
        for id in ["x", "-2", "1.5", "9223372036854775807", "9223372036854775808"] {
            assert_eq!(start(id), Err("invalid_event_id"), "{id}");
        }
    }

    #[test]
    fn browsers_get_events() {
        for (accept, form) in [
            ("text/event-stream", Form::ServerSentEvents),
            ("application/json, Text/Event-Stream;q=0.9", Form::ServerSentEvents),
            ("*/*", Form::JsonLines),
            ("text/event-streams", Form::JsonLines),
        ] {
            assert_eq!(request("watch", &[(ACCEPT, accept)]).expect(accept).form, form, "{accept}");
        }
    }

    fn state(value: &'static [u8], mod_revision: u64) -> KeyRecord {
        let value = value.into();
        KeyRecord { create_revision: 2, mod_revision, version: 1, value, ..KeyRecord::default() }
    }

    fn events() -> Vec<Arc<Event>> {
        let put = Change {
            key: "a".into(),
            record: Some(state(b"1", 4)),
            previous: Some(state(b"\xff", 3)),
            ..Change::default()
        };
        let delete =
            Change { key: "b".into(), previous: Some(state(b"0", 2)), ..Change::default() };
        let later = Change { key: "a".into(), previous: Some(state(b"1", 4)), ..Change::default() };
        [(4, put), (4, delete), (5, later)]
            .map(|(revision, change)| Arc::new(Event::new(revision, change)))
            .into()
    }

    fn text(bytes: &Bytes) -> &str {
        std::str::from_utf8(bytes).expect("JSON is UTF-8")
    }

    #[test]
    fn a_line_is_one_revision() {
        let writer = Writer { form: Form::JsonLines, prev: false };
        assert_eq!(
            text(&writer.events(&events(), 0)),
            "{\"revision\":4,\"events\":[{\"type\":\"put\",\"key\":\"a\",\"value\":\"1\",\
             \"create_revision\":2,\"mod_revision\":4,\"version\":1,\"lease\":0},\
             {\"type\":\"delete\",\"key\":\"b\",\"mod_revision\":4}]}\n\
             {\"revision\":5,\"events\":[{\"type\":\"delete\",\"key\":\"a\",\"mod_revision\":5}]}\n"
        );
        assert_eq!(text(&writer.progress(7)), "{\"revision\":7,\"events\":[]}\n");
        let end = writer.end(&Refused::Compacted.into());
        assert!(text(&end).starts_with("{\"error\":{\"code\":\"compacted\","), "{end:?}");
    }

    #[test]
    fn an_event_is_one_revision_with_its_id() {
        let writer = Writer { form: Form::ServerSentEvents, prev: false };
        let written = writer.events(&events(), 0);
        let all: Vec<&str> = text(&written).split("\n\n").collect();
        assert!(all[0].starts_with("id: 4\ndata: {\"revision\":4,"), "{all:?}");
        assert!(all[1].starts_with("id: 5\ndata: {\"revision\":5,"), "{all:?}");
        assert_eq!(all[2..], [""]);
        assert_eq!(text(&writer.progress(7)), "id: 7\n\n");
        let end = writer.end(&Refused::Compacted.into());
        assert!(text(&end).starts_with("event: end\ndata: {\"error\":"), "{end:?}");
        assert!(text(&end).ends_with("}\n\n"), "{end:?}");
    }

    #[test]
    fn the_state_before_is_told_only_if_it_could_be_read() {
        let writer = Writer { form: Form::JsonLines, prev: true };
        let prevs = |compacted| {
            let written = writer.events(&events(), compacted);
            text(&written).lines().map(|line| line.matches("\"prev\":").count()).collect::<Vec<_>>()
        };
        assert_eq!(prevs(0), [2, 1]);
        assert_eq!(prevs(3), [2, 1]);
        assert_eq!(prevs(4), [0, 1]);
        assert_eq!(prevs(5), [0, 0]);
        let written = writer.events(&events(), 0);
        assert!(
            text(&written).contains("\"prev\":{\"value_base64\":\"/w==\",\"create_revision\":2")
        );
    }
}
