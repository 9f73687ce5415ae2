//! Sending an input, and seeing what comes of it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{
    SendStream,
    client::{Builder, ResponseFuture, SendRequest},
};
use metastore_proof::{Failure, Result, report::During};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Mutex,
    time::{Instant, timeout, timeout_at},
};
use tonic::codegen::http::{HeaderMap, Method, Request, Response};

use super::{Port, Shot};
use crate::run::Verdict;

/// How long a connection may take to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// How long the other side may take to read an input; it need not read one that
/// it refuses.
const WRITE_LIMIT: Duration = Duration::from_secs(1);

/// How long an answer is waited for.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    /// Silence after which an input counts as left waiting.
    silence: Duration,
    /// How long an answer may go on before it is given up: streams never end.
    patience: Duration,
}

impl Waits {
    /// For one of many requests to a busy process.
    pub const AMONG_MANY: Self =
        Self { silence: Duration::from_millis(100), patience: Duration::from_millis(500) };

    /// For one request at a time, of which most are answered in less than one.
    pub const ALONE: Self =
        Self { silence: Duration::from_millis(5), patience: Duration::from_millis(10) };
}

/// Bytes of an answer that are looked at.
const SEEN_BYTES: usize = 1 << 20;

/// Connections that gRPC calls share.
const LANES: usize = 8;

/// Connections that are tried for a call, one after the other.
const CONNECTIONS: usize = 5;

/// The client's half of a connection that speaks HTTP/2.
type Lane = Arc<Mutex<Option<SendRequest<Bytes>>>>;

/// Sends to a member. Clones share their connections.
#[derive(Clone)]
pub struct Sender {
    client: SocketAddr,
    peer: SocketAddr,
    waits: Waits,
    // Locks because calls of many tasks share a few connections; held while one
    // is made.
    lanes: [Lane; LANES],
    next: Arc<AtomicUsize>,
}

impl Sender {
    /// To these two ports.
    pub fn new(client: SocketAddr, peer: SocketAddr, waits: Waits) -> Self {
        let lanes = std::array::from_fn(|_| Lane::default());
        Self { client, peer, waits, lanes, next: Arc::default() }
    }

    /// Sends an input and waits for what comes of it, for a while.
    ///
    /// # Errors
    /// When no connection can be made.
    pub async fn send(&self, shot: Shot) -> Result<Verdict> {
        match shot {
            Shot::Raw { port, bytes } => {
                let address = if port == Port::Client { self.client } else { self.peer };
                raw(address, &bytes, self.waits).await
            }
            Shot::Call { path, headers, body } => self.call(&path, &headers, body).await,
        }
    }

    async fn call(
        &self,
        path: &str,
        headers: &[(&'static str, &'static str)],
        body: Vec<u8>,
    ) -> Result<Verdict> {
        let mut request = Request::builder().method(Method::POST);
        request = request.uri(format!("http://member{path}")).header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        // What HTTP/2 itself cannot carry is for the target that sends bytes.
        let Ok(request) = request.body(()) else { return Ok(Verdict::Refused) };
        let lane = &self.lanes[self.next.fetch_add(1, Ordering::Relaxed) % LANES];
        let (answer, mut stream) = self.begin(lane, &request).await?;
        // Small enough for a window, or it waits within this client.
        if stream.send_data(body.into(), true).is_err() {
            return Ok(Verdict::Refused);
        }
        let called = timeout(self.waits.patience, grpc_status(answer)).await;
        // A stream that goes on was accepted.
        let status = called.unwrap_or(Some(0));
        Ok(if status == Some(0) { Verdict::Accepted } else { Verdict::Refused })
    }

    /// Begins a call, on another connection where the member has ended this one:
    /// it may, after too many calls that were given up.
    async fn begin(
        &self,
        lane: &Lane,
        request: &Request<()>,
    ) -> Result<(ResponseFuture, SendStream<Bytes>)> {
        for _ in 0..CONNECTIONS {
            if let Ok(mut requests) = self.open(lane).await?.ready().await
                && let Ok(begun) = requests.send_request(request.clone(), false)
            {
                return Ok(begun);
            }
            *lane.lock().await = None;
        }
        Err(Failure::failed("each of several connections ended before a call could begin"))
    }

    async fn open(&self, lane: &Lane) -> Result<SendRequest<Bytes>> {
        let mut lane = lane.lock().await;
        if let Some(requests) = lane.as_ref() {
            return Ok(requests.clone());
        }
        let socket = connect(self.client).await?;
        let made = timeout(CONNECT_LIMIT, Builder::new().handshake::<_, Bytes>(socket)).await;
        let made = made.map_err(|_| Failure::failed("HTTP/2 does not begin"))?;
        let (requests, connection) = made.during("begin HTTP/2")?;
        tokio::spawn(async move {
            // How it ended its streams know as well.
            let _ = connection.await;
        });
        *lane = Some(requests.clone());
        Ok(requests)
    }
}

/// The status of a call; `None` when it broke off, or is no number.
async fn grpc_status(answer: ResponseFuture) -> Option<u16> {
    let (head, mut body) = answer.await.ok().map(Response::into_parts)?;
    let status = |fields: &HeaderMap| fields.get("grpc-status")?.to_str().ok()?.parse().ok();
    if let Some(status) = status(&head.headers) {
        return Some(status);
    }
    while let Some(Ok(data)) = body.data().await {
        // A stream that has ended needs no more room.
        let _ = body.flow_control().release_capacity(data.len());
    }
    status(&body.trailers().await.ok()??)
}

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let connected = timeout(CONNECT_LIMIT, TcpStream::connect(address)).await;
    let socket = connected.map_err(|_| Failure::failed(format!("{address} does not accept")))?;
    let socket = socket.during(format_args!("connect to {address}"))?;
    socket.set_nodelay(true).during("set up a socket")?;
    // Many connections a second: closed ones shall not keep their ports.
    SockRef::from(&socket).set_linger(Some(Duration::ZERO)).during("set up a socket")?;
    Ok(socket)
}

/// Sends bytes on a connection of their own and reads until there is an answer,
/// or the end, or silence.
async fn raw(address: SocketAddr, bytes: &[u8], waits: Waits) -> Result<Verdict> {
    let mut socket = connect(address).await?;
    let (mut reader, mut writer) = socket.split();
    // Whoever refuses an input need not read it to its end.
    let writing = async { drop(timeout(WRITE_LIMIT, writer.write_all(bytes)).await) };
    let reading = async {
        let (end, mut seen) = (Instant::now() + waits.patience, Vec::new());
        let mut buffer = vec![0; 16 << 10];
        loop {
            let until = end.min(Instant::now() + waits.silence);
            match timeout_at(until, reader.read(&mut buffer)).await {
                Ok(Ok(read)) if read > 0 => seen.extend_from_slice(&buffer[..read]),
                _ => return seen,
            }
            if seen.len() > SEEN_BYTES || is_whole(&seen) {
                return seen;
            }
        }
    };
    let ((), seen) = tokio::join!(writing, reading);
    Ok(verdict(&seen))
}

/// Whether an answer of HTTP/1.1 is there to its end.
fn is_whole(seen: &[u8]) -> bool {
    let Some(head) = seen.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let body = &seen[head + 4..];
    let text = String::from_utf8_lossy(&seen[..head]).to_ascii_lowercase();
    if text.contains("transfer-encoding: chunked") {
        return body.ends_with(b"0\r\n\r\n");
    }
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length: usize = length.and_then(|length| length.trim().parse().ok()).unwrap_or(0);
    text.starts_with("http/1") && body.len() >= length
}

/// What an answer says, in HTTP/1.1 or HTTP/2.
fn verdict(seen: &[u8]) -> Verdict {
    let status = seen.strip_prefix(b"HTTP/1.1 ").or_else(|| seen.strip_prefix(b"HTTP/1.0 "));
    let is_good = match status {
        Some(status) => matches!(status.first(), Some(b'1'..=b'3')),
        None => has_headers(seen),
    };
    if is_good { Verdict::Accepted } else { Verdict::Refused }
}

/// Whether frames of HTTP/2 hold the head of an answer.
fn has_headers(mut seen: &[u8]) -> bool {
    const HEADERS: u8 = 1;
    while let Some((head, rest)) = seen.split_first_chunk::<9>() {
        let [a, b, c, kind, ..] = *head;
        if kind == HEADERS {
            return true;
        }
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        seen = rest.get(length..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_to_their_end() {
        assert!(is_whole(b"HTTP/1.1 204 No Content\r\n\r\n"));
        assert!(!is_whole(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab"));
        assert!(is_whole(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc"));
        assert!(!is_whole(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n"));
        assert!(is_whole(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"));
    }

    #[test]
    fn answers_are_told_apart() {
        assert_eq!(verdict(b"HTTP/1.1 304 Not Modified\r\n"), Verdict::Accepted);
        assert_eq!(verdict(b"HTTP/1.1 400 Bad Request\r\n"), Verdict::Refused);
        assert_eq!(verdict(b""), Verdict::Refused);
        let settings = [0, 0, 1, 4, 0, 0, 0, 0, 0, 9];
        assert_eq!(verdict(&settings), Verdict::Refused);
        let answered = [&settings[..], &[0, 0, 0, 1, 4, 0, 0, 0, 1]].concat();
        assert_eq!(verdict(&answered), Verdict::Accepted);
    }
}
