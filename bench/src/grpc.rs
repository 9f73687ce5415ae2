//! gRPC on HTTP/2 itself: a general client would take more of the processor
//! than the server that is measured.

use std::{future::poll_fn, sync::Arc};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::{
    RecvStream, SendStream,
    client::{Builder, ResponseFuture, SendRequest},
};
use http::{HeaderMap, Method, Request, StatusCode};
use prost::Message;
use tokio::sync::Mutex;

use crate::{endpoint::Endpoint, failure::Trouble};

/// What one answer may send before the client has read of it, in bytes.
const STREAM_WINDOW: u32 = 4 << 20;
/// The same of all answers of a connection.
const CONNECTION_WINDOW: u32 = 64 << 20;
/// Before each message: whether it is compressed, and its length.
const HEAD_BYTES: usize = 5;
/// What is made room for before it has come, in bytes.
const MAX_RESERVED_BYTES: usize = 4 << 20;
/// The largest message that is taken for one.
const MAX_MESSAGE_BYTES: usize = 1 << 30;

/// A connection that several clients share, made when it is first needed and
/// again when it broke.
#[derive(Debug)]
pub struct Connection {
    endpoint: Endpoint,
    current: Mutex<Current>,
}

#[derive(Debug, Default)]
struct Current {
    /// How often it was made.
    generation: u64,
    requests: Option<SendRequest<Bytes>>,
}

impl Connection {
    /// One to this member.
    pub fn new(endpoint: Endpoint) -> Arc<Self> {
        Arc::new(Self { endpoint, current: Mutex::default() })
    }

    /// A newer one than that of a generation, which broke.
    async fn after(&self, broken: u64) -> Result<(u64, SendRequest<Bytes>), Trouble> {
        let mut current = self.current.lock().await;
        if let Some(requests) = current.requests.as_ref().filter(|_| current.generation > broken) {
            return Ok((current.generation, requests.clone()));
        }
        current.requests = None;
        let stream = self.endpoint.connect().await?;
        let mut builder = Builder::new();
        builder.initial_window_size(STREAM_WINDOW);
        builder.initial_connection_window_size(CONNECTION_WINDOW);
        let (requests, connection) =
            builder.handshake::<_, Bytes>(stream).await.map_err(Trouble::broken)?;
        // Whoever waits for an answer hears how it ended.
        tokio::spawn(connection);
        current.generation += 1;
        current.requests = Some(requests.clone());
        Ok((current.generation, requests))
    }
}

/// A method, as the path that names it.
pub type Path = &'static str;

/// One client of a connection.
#[derive(Debug)]
pub struct Client {
    connection: Arc<Connection>,
    generation: u64,
    requests: Option<SendRequest<Bytes>>,
}

impl Client {
    /// One more client.
    pub fn new(connection: &Arc<Connection>) -> Self {
        Self { connection: Arc::clone(connection), generation: 0, requests: None }
    }

    /// Calls a method with one message; the message of its answer.
    ///
    /// # Errors
    /// When the call was refused, or the connection broke.
    pub async fn unary(&mut self, path: Path, message: &impl Message) -> Result<Bytes, Trouble> {
        let (answer, mut stream) = self.open(path).await?;
        let answered = async {
            stream.send_data(framed(message), true).map_err(Trouble::broken)?;
            whole(answer).await
        };
        let answered = answered.await;
        self.forget_if_broken(&answered);
        answered
    }

    /// Calls a method that takes and gives any number of messages.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn stream(&mut self, path: Path) -> Result<Stream, Trouble> {
        let (answer, requests) = self.open(path).await?;
        Ok(Stream { requests, answer: Some(answer), messages: None })
    }

    async fn open(&mut self, path: Path) -> Result<(ResponseFuture, SendStream<Bytes>), Trouble> {
        let opened = self.try_open(path).await;
        self.forget_if_broken(&opened);
        opened
    }

    async fn try_open(
        &mut self,
        path: Path,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), Trouble> {
        let authority = self.connection.endpoint.authority();
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{authority}{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(());
        let request = request.map_err(Trouble::broken)?;
        let requests = match &mut self.requests {
            Some(requests) => requests,
            None => {
                let (generation, requests) = self.connection.after(self.generation).await?;
                self.generation = generation;
                self.requests.insert(requests)
            }
        };
        poll_fn(|cx| requests.poll_ready(cx)).await.map_err(Trouble::broken)?;
        requests.send_request(request, false).map_err(Trouble::broken)
    }

    fn forget_if_broken<T>(&mut self, outcome: &Result<T, Trouble>) {
        if matches!(outcome, Err(Trouble::Broken(_))) {
            self.requests = None;
        }
    }
}

/// A call that goes on.
#[derive(Debug)]
pub struct Stream {
    requests: SendStream<Bytes>,
    answer: Option<ResponseFuture>,
    messages: Option<Messages>,
}

impl Stream {
    /// Sends one message.
    ///
    /// # Errors
    /// When the connection broke, or the call has ended.
    pub fn send(&mut self, message: &impl Message) -> Result<(), Trouble> {
        self.requests.send_data(framed(message), false).map_err(Trouble::broken)
    }

    /// The next message.
    ///
    /// # Errors
    /// When the connection broke, or the call has ended.
    pub async fn next(&mut self) -> Result<Bytes, Trouble> {
        let messages = match (&mut self.messages, self.answer.take()) {
            (Some(messages), _) => messages,
            (none, Some(answer)) => none.insert(Messages::of(answer).await?),
            (None, None) => return Err(Trouble::broken("the call failed before")),
        };
        let ended = || Trouble::broken("the server ended the stream");
        messages.next().await?.ok_or_else(ended)
    }
}

/// The messages of an answer.
#[derive(Debug)]
struct Messages {
    body: RecvStream,
    /// What has come and was not taken yet.
    buffer: BytesMut,
}

impl Messages {
    async fn of(answer: ResponseFuture) -> Result<Self, Trouble> {
        let (head, body) = answer.await.map_err(Trouble::broken)?.into_parts();
        if head.status != StatusCode::OK {
            return Err(Trouble::Refused(format!("HTTP status {}", head.status.as_u16())));
        }
        if head.headers.contains_key(STATUS) {
            check(&head.headers)?;
        }
        Ok(Self { body, buffer: BytesMut::new() })
    }

    /// The next one; none after the last, when the call went well.
    async fn next(&mut self) -> Result<Option<Bytes>, Trouble> {
        loop {
            if let Some(message) = take_message(&mut self.buffer)? {
                return Ok(Some(message));
            }
            match self.body.data().await {
                Some(piece) => {
                    let piece = piece.map_err(Trouble::broken)?;
                    // A stream that has ended needs no more room.
                    let _ = self.body.flow_control().release_capacity(piece.len());
                    if self.buffer.is_empty() {
                        // Nearly always a whole message, which is not copied.
                        self.buffer = piece.into();
                    } else {
                        self.buffer.extend_from_slice(&piece);
                    }
                }
                None => {
                    let trailers = self.body.trailers().await.map_err(Trouble::broken)?;
                    return trailers.map_or(Ok(()), |trailers| check(&trailers)).map(|()| None);
                }
            }
        }
    }
}

/// The one message of an answer, once the call is known to have gone well.
async fn whole(answer: ResponseFuture) -> Result<Bytes, Trouble> {
    let mut messages = Messages::of(answer).await?;
    let missing = || Trouble::broken("an answer without a message");
    let message = messages.next().await?.ok_or_else(missing)?;
    match messages.next().await? {
        None => Ok(message),
        Some(_) => Err(Trouble::broken("a second message in an answer that has one")),
    }
}

/// Takes a message from the front of what has come, if it is all there.
fn take_message(buffer: &mut BytesMut) -> Result<Option<Bytes>, Trouble> {
    let Some(mut head) = buffer.get(..HEAD_BYTES) else { return Ok(None) };
    let (compressed, length) = (head.get_u8(), head.get_u32() as usize);
    if compressed != 0 || length > MAX_MESSAGE_BYTES {
        return Err(Trouble::broken("an answer that is not gRPC"));
    }
    if buffer.len() - HEAD_BYTES < length {
        // At once, not again with each piece, as far as that is worth it.
        buffer.reserve((HEAD_BYTES + length - buffer.len()).min(MAX_RESERVED_BYTES));
        return Ok(None);
    }
    buffer.advance(HEAD_BYTES);
    Ok(Some(buffer.split_to(length).freeze()))
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(HEAD_BYTES + length);
    frame.put_u8(0);
    // Longer ones the server refuses, and this one then breaks off.
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    // Cannot fail: there is room for all of it.
    let _ = message.encode(&mut frame);
    frame.freeze()
}

const STATUS: &str = "grpc-status";

/// What the end of a call says about it.
fn check(fields: &HeaderMap) -> Result<(), Trouble> {
    let text = |name| fields.get(name).and_then(|value| value.to_str().ok());
    match text(STATUS) {
        Some("0") => Ok(()),
        Some(code) => {
            let message = text("grpc-message").unwrap_or("no message");
            Err(Trouble::Refused(format!("gRPC status {code}: {message}")))
        }
        None => Err(Trouble::broken("an answer without a status")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_once_they_are_whole() {
        let first = framed(&"one".to_owned());
        let all = [&first[..], &framed(&"two".to_owned())[..]].concat();
        let mut buffer = BytesMut::new();
        let mut taken = Vec::new();
        for byte in all {
            buffer.put_u8(byte);
            taken.extend(take_message(&mut buffer).expect("sound frames"));
        }
        assert!(buffer.is_empty());
        let texts: Vec<String> =
            taken.into_iter().map(|message| String::decode(message).expect("a string")).collect();
        assert_eq!(texts, ["one", "two"]);
    }

    #[test]
    fn what_is_not_grpc_is_refused() {
        let mut buffer = BytesMut::from("HTTP/1.1 400 Bad Request");
        assert!(take_message(&mut buffer).is_err());
    }

    #[test]
    fn the_end_of_a_call_says_how_it_went() {
        let mut fields = HeaderMap::new();
        assert!(matches!(check(&fields), Err(Trouble::Broken(_))));
        fields.insert(STATUS, "14".parse().expect("a value"));
        fields.insert("grpc-message", "no leader".parse().expect("a value"));
        let refused = Trouble::Refused("gRPC status 14: no leader".into());
        assert_eq!(check(&fields), Err(refused));
        fields.insert(STATUS, "0".parse().expect("a value"));
        assert_eq!(check(&fields), Ok(()));
    }
}
