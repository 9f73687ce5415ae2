//! A request body as a stream of JSON objects, one after the other.

use std::{marker::PhantomData, pin::Pin};

use axum::body::Body;
use bytes::{Buf, BytesMut};
use futures_util::{Stream, stream};
use http_body_util::BodyExt as _;
use serde::de::DeserializeOwned;
use tonic::Status;

/// The largest object, in bytes: requests to watch and to keep alive are small.
const MAX_OBJECT_BYTES: usize = 256 << 10;

/// What is left of a body, read object by object.
pub(super) struct Objects<Q> {
    body: Body,
    read: BytesMut,
    scan: Scan,
    ended: bool,
    kind: PhantomData<fn() -> Q>,
}

impl<Q: DeserializeOwned + Send + 'static> Objects<Q> {
    pub(super) fn new(body: Body) -> Self {
        Self { body, read: BytesMut::new(), scan: Scan::default(), ended: false, kind: PhantomData }
    }

    /// The next object; `None` at the end of the body.
    pub(super) async fn next(&mut self) -> Result<Option<Q>, Status> {
        loop {
            if let Some(object) = self.parse()? {
                return Ok(Some(object));
            }
            if self.ended {
                return Ok(None);
            }
            match self.body.frame().await {
                None => self.ended = true,
                Some(Ok(frame)) => {
                    let data = frame.into_data().unwrap_or_default();
                    if self.read.len() + data.len() > MAX_OBJECT_BYTES {
                        return Err(Status::resource_exhausted("request is too large"));
                    }
                    self.read.extend_from_slice(&data);
                }
                Some(Err(error)) => {
                    return Err(Status::cancelled(format!("the body broke off: {error}")));
                }
            }
        }
    }

    /// The first object of what was read, if it is there as a whole.
    fn parse(&mut self) -> Result<Option<Q>, Status> {
        let Some(end) = self.scan.end(&self.read) else {
            if self.read.trim_ascii().is_empty() {
                self.read.clear();
                self.scan = Scan::default();
            } else if self.ended {
                return Err(Status::invalid_argument("the body ends within an object"));
            }
            return Ok(None);
        };
        let object = serde_json::from_slice(&self.read[..end])
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.read.advance(end);
        self.scan = Scan::default();
        Ok(Some(object))
    }

    /// The objects from `first` on, until one cannot be read or the body ends;
    /// or for ever, if it is to stay open then.
    pub(super) fn into_stream(
        self,
        first: Option<Q>,
        stays_open: bool,
    ) -> Pin<Box<dyn Stream<Item = Q> + Send>> {
        let state = (first, self);
        Box::pin(stream::unfold(state, move |(first, mut objects)| async move {
            if let Some(first) = first {
                return Some((first, (None, objects)));
            }
            match objects.next().await {
                Ok(Some(object)) => Some((object, (None, objects))),
                Ok(None) if stays_open => std::future::pending().await,
                // What cannot be read ends the call like the client's going.
                Ok(None) | Err(_) => None,
            }
        }))
    }
}

/// Looks for the end of an object, at each byte once however they come.
#[derive(Debug, Default)]
struct Scan {
    /// Bytes that were looked at.
    seen: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Scan {
    /// Where the object ends with which the bytes begin, if it does; or where
    /// it turns out to be none, which parsing will say.
    fn end(&mut self, bytes: &[u8]) -> Option<usize> {
        while let Some(byte) = bytes.get(self.seen) {
            self.seen += 1;
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' if self.depth > 0 => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth > 1 => self.depth -= 1,
                b'}' | b']' => return Some(self.seen),
                other if self.depth == 0 && !other.is_ascii_whitespace() => return Some(self.seen),
                _ => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::proto::etcdserverpb::LeaseKeepAliveRequest;

    fn objects(pieces: &[&str]) -> Objects<LeaseKeepAliveRequest> {
        let pieces: Vec<_> =
            pieces.iter().map(|piece| io::Result::Ok((*piece).to_owned())).collect();
        Objects::new(Body::from_stream(stream::iter(pieces)))
    }

    async fn ids(pieces: &[&str]) -> Result<Vec<i64>, tonic::Code> {
        let mut objects = objects(pieces);
        let mut ids = Vec::new();
        while let Some(object) = objects.next().await.map_err(|status| status.code())? {
            ids.push(object.id);
        }
        Ok(ids)
    }

    #[tokio::test]
    async fn objects_end_where_they_end() {
        assert_eq!(ids(&[]).await, Ok(vec![]));
        assert_eq!(ids(&[" \n"]).await, Ok(vec![]));
        assert_eq!(
            ids(&[r#"{"ID":1}{"ID":"2"}"#, "\n", r#"{"I"#, r#"D":3}"#]).await,
            Ok(vec![1, 2, 3])
        );
        assert_eq!(ids(&["{}", "{\"x\":[1,{}]}"]).await, Ok(vec![0, 0]));
        let braces = "{\"x\":\"}\\\"}{\\\\\",\"ID\":4}{\"ID\":5}";
        let single: Vec<_> = braces.split_inclusive(|_: char| true).collect();
        assert_eq!(ids(&[braces]).await, Ok(vec![4, 5]));
        assert_eq!(ids(&single).await, Ok(vec![4, 5]));
    }

    #[tokio::test]
    async fn what_is_no_object_is_an_error() {
        let invalid = Err(tonic::Code::InvalidArgument);
        for pieces in [&["x"][..], &["{\"ID\":1"], &["{}", "}"], &["{\"ID\":\"x\"}"]] {
            assert_eq!(ids(pieces).await, invalid, "{pieces:?}");
        }
        let long = "\"".repeat(2) + &" ".repeat(MAX_OBJECT_BYTES);
        assert_eq!(ids(&["{\"a\":", &long]).await, Err(tonic::Code::ResourceExhausted));
    }
}
