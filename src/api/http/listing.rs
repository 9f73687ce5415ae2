//! `GET /{prefix}?list`: the keys under a prefix as JSON lines, any number of
//! them in little memory.
//!
//! A thread reads one moment of the store and writes lines into a channel that
//! holds very little, so it reads as fast as the client does. The revision of
//! that moment is asked for first and then read at, because it stands in front
//! of the answer; what is written in between does not show.

use std::{
    io::{self, Write},
    time::Duration,
};

use axum::{
    body::Body,
    http::{
        HeaderValue,
        header::{CACHE_CONTROL, CONTENT_TYPE},
    },
    response::Response,
};
use bytes::Bytes;
use futures_util::stream;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use serde::Serialize;
use tokio::{runtime::Handle as Runtime, sync::mpsc, time::timeout};

use super::{
    Api,
    keys::REVISION,
    options::{Consistency, Options},
    pair::Pair,
    refusal::Refusal,
};
use crate::{
    api::gate::RouteLabel,
    error::Fatal,
    machine::View,
    node::Handle,
    proto::{Refused, etcdserverpb::RangeRequest, mvccpb::KeyValue},
    storage::rocks::RocksEngine,
};

/// The content type of a stream of JSON lines.
pub(super) const JSON_LINES: HeaderValue = HeaderValue::from_static("application/x-ndjson");

/// What is written at a time, in bytes.
const CHUNK_BYTES: usize = 64 << 10;

/// Chunks between the reading thread and the connection.
const CHUNKS_QUEUED: usize = 2;

/// How long a client may take no chunk before its thread is given back.
const STALL_PATIENCE: Duration = Duration::from_secs(60);

/// How often a compaction may overtake the revision that was just read.
const TRIES: usize = 5;

/// What `from` needs not have escaped.
const LITERAL: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

const KNOWN: &str = "a list knows limit, from, keys_only, revision and consistency";

/// What a client asked for.
#[derive(Debug, PartialEq, Eq)]
struct Listing {
    prefix: Bytes,
    from: Option<Bytes>,
    limit: Option<i64>,
    keys_only: bool,
    revision: Option<i64>,
    consistency: Consistency,
}

impl Listing {
    fn parse(prefix: Bytes, mut options: Options) -> Result<Self, Refusal> {
        let listing = Self {
            prefix,
            from: options.bytes("from")?.map(Bytes::from),
            // One more than the limit is read, to know where to go on.
            limit: options.number("limit", 1..=i64::MAX - 1)?,
            keys_only: options.flag("keys_only")?,
            revision: options.revision()?,
            consistency: options.consistency()?,
        };
        options.finish(KNOWN)?;
        Ok(listing)
    }

    fn request(&self, revision: i64) -> RangeRequest {
        let (first, range_end) = prefix_range(&self.prefix);
        RangeRequest {
            key: self.from.clone().map_or_else(|| first.clone(), |from| from.max(first.clone())),
            range_end,
            limit: self.limit.map_or(0, |limit| limit + 1),
            revision,
            keys_only: self.keys_only,
            ..RangeRequest::default()
        }
    }

    /// Where the next page is.
    fn next(&self, first: &[u8], revision: i64) -> String {
        let prefix = percent_encode(&self.prefix, LITERAL).to_string();
        // `/-/` is not a prefix of keys when it stands there as it is.
        let prefix = match prefix.strip_prefix("-/") {
            Some(rest) => format!("%2D/{rest}"),
            None => prefix,
        };
        let from = percent_encode(first, LITERAL);
        let limit = self.limit.unwrap_or_default();
        let keys_only = if self.keys_only { "&keys_only" } else { "" };
        let stale = match self.consistency {
            Consistency::Stale => "&consistency=stale",
            Consistency::Linearizable => "",
        };
        format!("/{prefix}?list&limit={limit}&from={from}&revision={revision}{keys_only}{stale}")
    }
}

/// The range of the keys that begin so: the first key, and the end as etcd
/// writes it.
pub(super) fn prefix_range(prefix: &Bytes) -> (Bytes, Bytes) {
    const ZERO: Bytes = Bytes::from_static(&[0]);
    if prefix.is_empty() {
        return (ZERO, ZERO);
    }
    let Some(at) = prefix.iter().rposition(|byte| *byte != u8::MAX) else {
        return (prefix.clone(), ZERO);
    };
    let mut end = prefix[..=at].to_vec();
    end[at] += 1;
    (prefix.clone(), end.into())
}

/// Answers `?list`.
pub(super) async fn answer(
    api: &Api,
    prefix: Bytes,
    options: Options,
) -> Result<Response, Refusal> {
    let listing = Listing::parse(prefix, options)?;
    let permit = api.listings.clone().try_acquire_owned().map_err(|_| {
        Refusal::overloaded("too many lists are being read; retry when one is done")
    })?;
    let view = match listing.consistency {
        Consistency::Linearizable => api.handle.read().await?,
        Consistency::Stale => api.handle.view()?,
    };
    let (sender, mut pieces) = mpsc::channel(CHUNKS_QUEUED);
    let reader = Reader {
        listing,
        lines: Lines {
            sender,
            runtime: Runtime::current(),
            handle: api.handle.clone(),
            buffer: Vec::new(),
            begun: false,
        },
        api: api.clone(),
    };
    tokio::task::spawn_blocking(move || {
        // Held by the work and not by the request, which the client may abandon.
        let _permit = permit;
        reader.run(&view);
    });
    match pieces.recv().await {
        Some(Piece::Begin(revision)) => Ok(streamed(revision, pieces)),
        Some(Piece::Refused(refusal)) => Err(refusal),
        _ => Err(Refusal::unavailable("the node is stopping; ask another member")),
    }
}

fn streamed(revision: i64, pieces: mpsc::Receiver<Piece>) -> Response {
    let body = stream::unfold(Some(pieces), async |pieces| {
        let mut pieces = pieces?;
        match pieces.recv().await {
            Some(Piece::Data(bytes)) => Some((Ok(bytes), Some(pieces))),
            Some(Piece::End) => None,
            // Anything but the end must look like the failure it is.
            _ => Some((Err(io::Error::other("the list broke off")), None)),
        }
    });
    let mut response = Response::new(Body::from_stream(body));
    response.extensions_mut().insert(RouteLabel("/{prefix}?list"));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, JSON_LINES);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REVISION, HeaderValue::from(revision));
    response
}

/// What the reading thread says.
#[derive(Debug)]
enum Piece {
    /// The list is of this revision.
    Begin(i64),
    Data(Bytes),
    End,
    /// There is no list, and nothing was said before.
    Refused(Refusal),
    /// The list breaks off.
    Broken,
}

/// The writing side of the channel, which makes chunks of lines, and of parts
/// of them when they are long.
struct Lines {
    sender: mpsc::Sender<Piece>,
    runtime: Runtime,
    handle: Handle,
    buffer: Vec<u8>,
    begun: bool,
}

impl Lines {
    /// Waits for room, for as long as the client is given and this member may
    /// serve.
    fn send(&mut self, piece: Piece) -> io::Result<()> {
        if self.handle.is_accused() {
            return Err(io::Error::other("the CORRUPT alarm names this member"));
        }
        let sending = timeout(STALL_PATIENCE, self.sender.send(piece));
        match self.runtime.block_on(sending) {
            Ok(Ok(())) => Ok(()),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn begin(&mut self, revision: i64) -> io::Result<()> {
        self.begun = true;
        self.send(Piece::Begin(revision))
    }

    fn line(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut *self, value)?;
        self.write_all(b"\n")
    }

    fn end(&mut self) -> io::Result<()> {
        self.flush()?;
        self.send(Piece::End)
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.capacity() == 0 {
            self.buffer.reserve_exact(CHUNK_BYTES);
        }
        let room = CHUNK_BYTES.saturating_sub(self.buffer.len()).max(1);
        let taken = bytes.len().min(room);
        self.buffer.extend_from_slice(&bytes[..taken]);
        if self.buffer.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::take(&mut self.buffer);
        self.send(Piece::Data(chunk.into()))
    }
}

/// The work of the reading thread.
struct Reader {
    listing: Listing,
    lines: Lines,
    api: Api,
}

impl Reader {
    fn run(mut self, view: &View<RocksEngine>) {
        // A client that is gone needs no answer.
        let _gone = match self.read(view) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(refused)) => self.fail(refused.into()),
            Err(fatal) => {
                let refusal = self.api.fail(fatal);
                self.fail(refusal)
            }
        };
    }

    /// Reads at the revision asked for, or at the newest.
    fn read(&mut self, view: &View<RocksEngine>) -> Result<Result<(), Refused>, Fatal> {
        let mut tries = TRIES;
        loop {
            let revision = match self.listing.revision {
                Some(revision) => revision,
                None => i64::try_from(view.revision()?).unwrap_or(i64::MAX),
            };
            match self.read_at(view, revision)? {
                Err(Refused::Compacted)
                    if self.listing.revision.is_none() && !self.lines.begun && tries > 1 =>
                {
                    tries -= 1;
                }
                result => return Ok(result),
            }
        }
    }

    fn read_at(
        &mut self,
        view: &View<RocksEngine>,
        revision: i64,
    ) -> Result<Result<(), Refused>, Fatal> {
        let Self { listing, lines, .. } = self;
        let mut left = listing.limit;
        let mut next = None;
        let mut outcome = Ok(());
        let mut take = |kv: KeyValue| {
            if left == Some(0) {
                next = Some(listing.next(&kv.key, revision));
                return false;
            }
            left = left.map(|left| left - 1);
            outcome = (|| {
                if !lines.begun {
                    lines.begin(revision)?;
                }
                lines.line(&Pair { kv: &kv, keys_only: listing.keys_only })
            })();
            outcome.is_ok()
        };
        if let Err(refused) = view.stream(&listing.request(revision), &mut take)? {
            return Ok(Err(refused));
        }
        // Whoever is gone is not told the end either.
        let _gone = outcome.and_then(|()| {
            if !lines.begun {
                lines.begin(revision)?;
            }
            if let Some(next) = next {
                lines.line(&Next { next })?;
            }
            lines.end()
        });
        Ok(Ok(()))
    }

    /// Says that there is no list, or that it breaks off and why.
    fn fail(&mut self, refusal: Refusal) -> io::Result<()> {
        if !self.lines.begun {
            return self.lines.send(Piece::Refused(refusal));
        }
        self.lines.write_all(&refusal.line())?;
        self.lines.flush()?;
        self.lines.send(Piece::Broken)
    }
}

/// The last line when the limit left something out.
#[derive(Serialize)]
struct Next {
    next: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(prefix: &'static [u8], query: &str) -> Result<Listing, &'static str> {
        let mut options = Options::parse(Some(query)).expect("well-formed");
        assert_eq!(options.flag("list"), Ok(true));
        Listing::parse(prefix.into(), options).map_err(|refusal| refusal.code())
    }

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        for (prefix, first, end) in [
            (&b""[..], &b"\0"[..], &b"\0"[..]),
            (b"a", b"a", b"b"),
            (b"a/", b"a/", b"a0"),
            (b"a\xff", b"a\xff", b"b"),
            (b"a\xff\xff", b"a\xff\xff", b"b"),
            (b"\xfe\xff", b"\xfe\xff", b"\xff"),
            (b"\xff\xff", b"\xff\xff", b"\0"),
            (b"\0", b"\0", b"\x01"),
        ] {
            let range = prefix_range(&Bytes::from_static(prefix));
            assert_eq!(range, (first.into(), end.into()), "{}", prefix.escape_ascii());
        }
    }

    #[test]
    fn a_page_begins_at_from_but_not_before_the_prefix() {
        for (query, first) in [
            ("list", &b"b/"[..]),
            ("list&from=", b"b/"),
            ("list&from=a", b"b/"),
            ("list&from=b/x%00", b"b/x\0"),
            ("list&from=c", b"c"),
        ] {
            let request = listing(b"b/", query).expect(query).request(7);
            assert_eq!((&request.key[..], &request.range_end[..]), (first, &b"b0"[..]), "{query}");
            assert_eq!((request.revision, request.limit), (7, 0));
        }
        let everything = listing(b"", "list&from=&limit=5&keys_only").expect("well-formed");
        let request = everything.request(7);
        assert_eq!((&request.key[..], &request.range_end[..]), (&b"\0"[..], &b"\0"[..]));
        assert_eq!((request.limit, request.keys_only), (6, true));
    }

    #[test]
    fn options_are_checked() {
        for (query, code) in [
            ("list&limit=0", "invalid_option"),
            ("list&limit=-1", "invalid_option"),
            ("list&limit=9223372036854775807", "invalid_option"),
            ("list&revision=0", "invalid_option"),
            ("list&from", "invalid_option"),
            ("list&keys_only=yes", "invalid_option"),
            ("list&prefix", "unknown_option"),
            ("list&watch", "unknown_option"),
            ("list&limit=1&limit=1", "duplicate_option"),
        ] {
            assert_eq!(listing(b"a", query), Err(code), "{query}");
        }
    }

    #[test]
    fn the_next_page_is_named_so_that_it_can_be_asked_for() {
        let next = |prefix, query| listing(prefix, query).expect(query).next(b"a b/\xff&\0", 9);
        assert_eq!(
            next(b"a b", "list&limit=2&keys_only&consistency=stale"),
            "/a%20b?list&limit=2&from=a%20b/%FF%26%00&revision=9&keys_only&consistency=stale"
        );
        assert_eq!(next(b"", "list&limit=2"), "/?list&limit=2&from=a%20b/%FF%26%00&revision=9");
        assert!(next(b"-/x", "list&limit=2").starts_with("/%2D/x?list&"));
        assert!(next(b"//x", "list&limit=2").starts_with("///x?list&"));
    }
}
