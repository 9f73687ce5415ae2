//! The one way in which this process listens.
//!
//! Both listeners, peers' and clients', are opened by [`bind`] and run by
//! [`serve`], so that what holds for every connection (limits, timeouts, and
//! one day TLS) is said once.

use std::{
    io,
    net::{SocketAddr, TcpListener, ToSocketAddrs as _},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use slog::{Logger, debug, warn};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::TcpStream, task::JoinHandle, time};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    connection::{Answers, Connection},
    idle::Noted,
    slots::{Slot, Slots},
    throttle::{LOG_INTERVAL, Throttle},
};
use crate::error::Fatal;

pub use super::connection::{Service, Tally};

/// Connections of clients at a time, where the limit on open files allows.
pub const MAX_CLIENT_CONNECTIONS: usize = 16_384;

/// Connections of peers at a time, likewise: a member of nine has eight of
/// each kind of stream and the calls of eight followers.
pub const MAX_PEER_CONNECTIONS: usize = 2_048;

/// Open files that are not for connections: the tables of both databases and
/// their logs, snapshots on their way, and connections to peers.
const OTHER_FILES: usize = 2_048;

/// Connections the kernel accepts before the process does.
const BACKLOG: i32 = 1024;

/// HTTP/2 headers in bytes: a key travels in the path, so as generous as what
/// HTTP/1 takes.
const MAX_HTTP2_HEADER_BYTES: u32 = 128 << 10;

/// What is read ahead of an HTTP/1 connection, in bytes, its headers included;
/// and about what is written ahead.
const HTTP1_BUFFER_BYTES: usize = 128 << 10;

/// What a client may send of one HTTP/2 request, and of all on a connection,
/// before the server has taken it, in bytes. It is memory that every
/// connection can make this process hold, and bounds what one request sends
/// in a round trip.
///
/// h2 closes a connection of which it keeps small pieces of bodies that would
/// take half of its window if each were 256 bytes, a request of gRPC being such
/// a piece with some clients. So the window has room for as many as may be in
/// flight before connections have shares.
const HTTP2_STREAM_WINDOW: u32 = 128 << 10;
const HTTP2_CONNECTION_WINDOW: u32 = 1 << 20;

/// HTTP/2 streams of one connection at a time. A gRPC client opens one for
/// every watch and every lock it waits for, and behind a low limit the call
/// that would end the waiting is stuck.
const MAX_HTTP2_STREAMS: u32 = 16_384;

/// How long to wait after the system refused to accept a connection, most
/// likely for lack of file descriptors, which only time brings back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How many connections a listener has at a time. When all are taken, the one
/// that has had no request for longest makes room for the next; when none is
/// without, that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Places {
    /// For clients.
    pub clients: usize,
    /// For peers: others than those for clients, so that no number of clients
    /// separates a member from its peers.
    pub peers: usize,
}

impl Places {
    /// What this process may have within its limit on open files.
    pub fn allowed() -> Self {
        let files = rlimit::Resource::NOFILE.get_soft().unwrap_or(0);
        Self::within(usize::try_from(files).unwrap_or(usize::MAX))
    }

    /// What is left of so many files beside those of the databases; some of
    /// each even if that is too many.
    fn within(files: usize) -> Self {
        let left = files - OTHER_FILES.min(files / 2);
        let peers = (left / 4).clamp(32, MAX_PEER_CONNECTIONS);
        let clients = left.saturating_sub(peers).clamp(32, MAX_CLIENT_CONNECTIONS);
        Self { clients, peers }
    }
}

/// How long a connection may take over what.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For the headers of an HTTP/1 request, and between two requests.
    pub header: Duration,
    /// Without a byte in either direction; must be longer than any request may
    /// legitimately be silent. HTTP/2 pings count as bytes. Also for a client
    /// to take a small piece of an answer, whatever else moves.
    pub idle: Duration,
    /// Between HTTP/2 pings, and for the answer to one.
    pub ping: Duration,
    /// For requests in progress when the listener is told to stop.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(30),
            idle: Duration::from_secs(120),
            ping: Duration::from_secs(20),
            drain: Duration::from_secs(2),
        }
    }
}

/// Opens a listening socket. `host` is a name or an address; `setting` names,
/// for the error, what the operator would change to choose another port.
///
/// # Errors
/// When the name has no address, or the address cannot be listened on.
pub fn bind(host: &str, port: u16, setting: &str) -> Result<TcpListener, Fatal> {
    let bare_host = host.trim_start_matches('[').trim_end_matches(']');
    let addresses = (bare_host, port).to_socket_addrs().map_err(|error| {
        Fatal::new(
            format!("cannot listen on {host}:{port}: {host} has no address ({error})"),
            "name an address of this machine",
        )
    })?;
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match listen(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(cannot_listen(host, port, setting, &last))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Without it a restart would have to wait for old connections to time out.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn cannot_listen(host: &str, port: u16, setting: &str, error: &io::Error) -> Fatal {
    let (why, remedy) = match error.kind() {
        io::ErrorKind::AddrInUse => (
            "address already in use".to_owned(),
            format!("stop the process that uses it or choose another {setting}"),
        ),
        io::ErrorKind::PermissionDenied => (
            "permission denied".to_owned(),
            format!("choose another {setting}, from 1024 up, or run with the right to use it"),
        ),
        io::ErrorKind::AddrNotAvailable => (
            "it is not an address of this machine".to_owned(),
            "name an address of this machine".to_owned(),
        ),
        _ => (error.to_string(), format!("choose another {setting}")),
    };
    Fatal::new(format!("cannot listen on {host}:{port}: {why}"), remedy)
}

/// Serves HTTP/1 and HTTP/2 (without TLS, so by prior knowledge) on at most
/// `places` connections until `shutdown`: then it accepts nothing more, lets each connection finish the
/// request it is at, and cuts what is left after [`Timeouts::drain`]. The task
/// ends when every connection has. Must be called within a tokio runtime.
///
/// # Errors
/// When the runtime cannot watch the socket.
pub fn serve(
    listener: TcpListener,
    service: impl Service,
    places: usize,
    timeouts: Timeouts,
    shutdown: CancellationToken,
    logger: Logger,
) -> Result<JoinHandle<()>, Fatal> {
    let listener = tokio::net::TcpListener::from_std(listener).map_err(|error| {
        Fatal::new(
            format!("cannot listen: {error}"),
            "raise the limit on open files, then start the node again",
        )
    })?;
    let server = Server {
        builder: Arc::new(builder(&timeouts)),
        service,
        slots: Slots::new(places),
        timeouts,
        shutdown,
        kill: CancellationToken::new(),
        connections: TaskTracker::new(),
        logger,
    };
    Ok(tokio::spawn(server.run(listener)))
}

fn builder(timeouts: &Timeouts) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(timeouts.header)
        .max_buf_size(HTTP1_BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(timeouts.ping)
        .keep_alive_timeout(timeouts.ping)
        .max_concurrent_streams(MAX_HTTP2_STREAMS)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
        .max_header_list_size(MAX_HTTP2_HEADER_BYTES);
    builder
}

struct Server<S> {
    builder: Arc<Builder<TokioExecutor>>,
    service: S,
    slots: Slots,
    timeouts: Timeouts,
    shutdown: CancellationToken,
    /// Ends connections that did not finish in time.
    kill: CancellationToken,
    connections: TaskTracker,
    logger: Logger,
}

impl<S: Service> Server<S> {
    async fn run(self, listener: tokio::net::TcpListener) {
        self.shutdown.clone().run_until_cancelled(self.accept(&listener)).await;
        drop(listener);
        self.connections.close();
        if time::timeout(self.timeouts.drain, self.connections.wait()).await.is_err() {
            self.kill.cancel();
            self.connections.wait().await;
        }
    }

    async fn accept(&self, listener: &tokio::net::TcpListener) {
        let complaints = Throttle::new(LOG_INTERVAL);
        loop {
            match listener.accept().await {
                Ok((socket, _)) => {
                    let slot = self.slots.take().await;
                    self.connections.spawn(self.connection(socket, slot));
                }
                Err(error) if belongs_to_the_peer(&error) => {}
                Err(error) => {
                    if complaints.pass() {
                        warn!(self.logger, "cannot accept connections"; "error" => %error);
                    }
                    time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn connection(&self, socket: TcpStream, slot: Slot) -> impl Future<Output = ()> + use<S> {
        let builder = Arc::clone(&self.builder);
        let service = self.service.clone();
        let (shutdown, kill) = (self.shutdown.clone(), self.kill.clone());
        let (idle, logger) = (self.timeouts.idle, self.logger.clone());
        async move {
            if let Err(error) = socket.set_nodelay(true) {
                debug!(logger, "connection without TCP_NODELAY"; "error" => %error);
            }
            let connection = Connection::new(slot, idle);
            let service = Answers::new(Arc::clone(&connection), service);
            let (socket, activity) = Noted::new(socket);
            let mut served = pin!(builder.serve_connection(TokioIo::new(socket), service));
            let mut silence = pin!(activity.silent_for(idle));
            let mut overdue = pin!(connection.overdue());
            let mut pushed_out = pin!(connection.pushed_out());
            let mut closing = false;
            loop {
                tokio::select! {
                    result = served.as_mut() => {
                        if let Err(error) = result {
                            debug!(logger, "connection ended"; "error" => %error);
                        }
                        return;
                    }
                    () = shutdown.cancelled(), if !closing => {
                        closing = true;
                        served.as_mut().graceful_shutdown();
                    }
                    () = silence.as_mut() => return,
                    () = overdue.as_mut() => return,
                    () = pushed_out.as_mut() => return,
                    () = kill.cancelled() => return,
                }
            }
        }
    }
}

/// Whether accepting failed because the peer hung up meanwhile.
fn belongs_to_the_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_shared_so_that_nobody_goes_without() {
        for (files, clients, peers) in [
            (1_048_576, 16_384, 2_048),
            (20_000, 15_904, 2_048),
            (4_096, 1_536, 512),
            (1_024, 384, 128),
            (256, 96, 32),
            (0, 32, 32),
        ] {
            assert_eq!(Places::within(files), Places { clients, peers }, "{files}");
        }
    }
}
