//! Connections as no well-behaved client has them.

use std::{net::SocketAddr, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use h2::{
    RecvStream, SendStream,
    client::{Builder, ResponseFuture, SendRequest},
};
use prost::Message;
use tokio::{
    io::AsyncReadExt,
    net::{TcpSocket, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tonic::codegen::http::{Method, Request};

use crate::{Failure, Result, report::During};

/// How long a connection may take to be made: the members are busy.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// A connection with a small buffer for what comes in, so that whoever does
/// not read it makes the other side wait soon.
pub async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4().during("make a socket")?;
    socket.set_recv_buffer_size(16 << 10).during("set a socket's buffer")?;
    let connected = timeout(CONNECT_LIMIT, socket.connect(address)).await;
    connected.map_err(|_| Failure::failed(format!("{address} does not accept")))?.during("connect")
}

/// The status code of an HTTP/1 answer; `None` when the connection ends first.
pub async fn status(socket: &mut TcpStream) -> Option<u16> {
    const STATUS_LINE: usize = "HTTP/1.1 200".len();
    let mut line = [0; STATUS_LINE];
    socket.read_exact(&mut line).await.ok()?;
    std::str::from_utf8(line.get(STATUS_LINE - 3..)?).ok()?.parse().ok()
}

/// A message as gRPC frames it.
pub fn framed(message: &impl Message) -> Bytes {
    framed_bytes(&message.encode_to_vec(), false)
}

/// The same of an encoded one.
pub fn framed_bytes(message: &[u8], compressed: bool) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(compressed.into());
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

/// An HTTP/2 connection of which each stream can be starved by itself.
pub struct Http2 {
    requests: SendRequest<Bytes>,
    driver: JoinHandle<()>,
}

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Called {
    /// The gRPC status, by its number and text.
    Status(u16, String),
    /// The stream or the connection broke off.
    Broken,
}

impl Http2 {
    /// Connects. Each stream takes `window` bytes until it is given more.
    pub async fn connect(address: SocketAddr, window: u32) -> Result<Self> {
        let socket = TcpStream::connect(address).await.during("connect")?;
        let mut builder = Builder::new();
        builder.initial_window_size(window).initial_connection_window_size(1 << 20);
        let made = timeout(CONNECT_LIMIT, builder.handshake::<_, Bytes>(socket)).await;
        let (requests, connection) = made
            .map_err(|_| Failure::failed(format!("{address} does not speak HTTP/2")))?
            .during("begin HTTP/2")?;
        let driver = tokio::spawn(async move {
            // How it ended its streams know as well.
            let _ = connection.await;
        });
        Ok(Self { requests, driver })
    }

    /// Begins a call.
    pub async fn call(
        &self,
        path: &str,
        compressed: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>)> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://member{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if compressed {
            request = request.header("grpc-encoding", "gzip");
        }
        let request = request.body(()).during("make a request")?;
        let mut requests = self.requests.clone().ready().await.during("wait for HTTP/2")?;
        requests.send_request(request, false).during("begin a call")
    }

    /// Asks for a key.
    pub async fn get(&self, path: &str) -> Result<ResponseFuture> {
        let request = Request::builder().uri(format!("http://member{path}"));
        let request = request.body(()).during("make a request")?;
        let mut requests = self.requests.clone().ready().await.during("wait for HTTP/2")?;
        Ok(requests.send_request(request, true).during("send a request")?.0)
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The gRPC status of an answer, whose content is thrown away.
pub async fn called(answer: ResponseFuture) -> Called {
    let Ok(answer) = answer.await else { return Called::Broken };
    let (head, mut body) = answer.into_parts();
    let mut fields = head.headers;
    if !fields.contains_key("grpc-status") {
        while let Some(Ok(data)) = body.data().await {
            release(&mut body, data.len());
        }
        let Ok(Some(trailers)) = body.trailers().await else { return Called::Broken };
        fields = trailers;
    }
    let text = |name: &str| fields.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status").and_then(|code| code.parse().ok()) {
        Some(code) => Called::Status(code, text("grpc-message").unwrap_or_default().to_owned()),
        None => Called::Broken,
    }
}

/// Gives a stream room for as many bytes as were taken.
pub fn release(body: &mut RecvStream, bytes: usize) {
    // A stream that has ended needs none.
    let _ = body.flow_control().release_capacity(bytes);
}

/// Sends bytes on a stream as fast as the other side takes them; false when it
/// takes no more.
pub async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes, end: bool) -> bool {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        while stream.capacity() == 0 {
            match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(Ok(_)) => {}
                _ => return false,
            }
        }
        let piece = data.split_to(stream.capacity().min(data.len()));
        let last = end && data.is_empty();
        if stream.send_data(piece, last).is_err() {
            return false;
        }
    }
    true
}
