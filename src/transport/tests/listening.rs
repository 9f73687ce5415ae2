//! The listener itself.

use axum::{Router, routing::get};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time,
};

use super::*;

const SHORT: Duration = Duration::from_millis(50);

fn serve(router: Router, timeouts: Timeouts) -> (u16, CancellationToken, JoinHandle<()>) {
    serve_at(router, PLACES, timeouts)
}

fn serve_at(
    router: Router,
    places: usize,
    timeouts: Timeouts,
) -> (u16, CancellationToken, JoinHandle<()>) {
    let (listener, port, _) = free_port();
    let shutdown = CancellationToken::new();
    let server = listener::serve(listener, router, places, timeouts, shutdown.clone(), logger());
    (port, shutdown, server.expect("a runtime"))
}

fn hello() -> Router {
    Router::new().route("/", get(|| async { "hello" }))
}

async fn connect(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).await.expect("it listens")
}

async fn read_to_end(mut socket: TcpStream) -> String {
    let mut text = String::new();
    let end = time::timeout(PATIENCE, socket.read_to_string(&mut text)).await;
    end.expect("closed in time").expect("text");
    text
}

#[test]
fn a_port_in_use_is_a_clear_error() {
    let (_listener, port, _) = free_port();
    let error = listener::bind("127.0.0.1", port, "--port").expect_err("in use").to_string();
    assert_eq!(
        error,
        format!(
            "cannot listen on 127.0.0.1:{port}: address already in use; \
             stop the process that uses it or choose another --port"
        )
    );
}

#[test]
fn an_address_of_another_machine_is_a_clear_error() {
    let error = listener::bind("192.0.2.1", 0, "--port").expect_err("not ours").to_string();
    assert_eq!(
        error,
        "cannot listen on 192.0.2.1:0: it is not an address of this machine; \
         name an address of this machine"
    );
    let error = listener::bind("no such host", 1, "--port").expect_err("no host").to_string();
    assert!(error.starts_with("cannot listen on no such host:1: no such host has no address"));
}

#[tokio::test]
async fn both_versions_of_http_are_spoken_on_one_port() {
    let (port, shutdown, server) = serve(hello(), Timeouts::default());
    let mut socket = connect(port).await;
    socket
        .write_all(b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
        .await
        .expect("sent");
    assert!(read_to_end(socket).await.ends_with("hello"));

    let mut socket = connect(port).await;
    let empty_settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    socket.write_all(empty_settings).await.expect("sent");
    let mut frame_head = [0; 9];
    socket.read_exact(&mut frame_head).await.expect("a frame");
    assert_eq!(frame_head[3], 4, "the server's SETTINGS come first");
    drop(socket);
    shutdown.cancel();
    server.await.expect("no panic");
}

#[tokio::test]
async fn slow_headers_and_silent_connections_are_cut() {
    let timeouts = Timeouts { header: SHORT, idle: SHORT * 4, ..Timeouts::default() };
    let (port, shutdown, server) = serve(hello(), timeouts);
    let silent = connect(port).await;
    assert_eq!(read_to_end(silent).await, "");
    let mut slow = connect(port).await;
    slow.write_all(b"GET / HTTP/1.1\r\nhost").await.expect("sent");
    assert!(!read_to_end(slow).await.contains("200 OK"));
    shutdown.cancel();
    server.await.expect("no panic");
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn connections_that_do_nothing_make_room_for_others() {
    let (port, shutdown, server) = serve_at(hello(), 8, Timeouts::default());
    let mut silent = Vec::new();
    for _ in 0..32 {
        let mut socket = connect(port).await;
        socket.write_all(b"GET / HT").await.expect("sent");
        silent.push(socket);
    }
    // None of them is closed by time: that would take half a minute.
    let mut socket = connect(port).await;
    socket.write_all(GET).await.expect("sent");
    assert!(read_to_end(socket).await.ends_with("hello"));
    drop(silent);
    shutdown.cancel();
    server.await.expect("no panic");
}

#[tokio::test]
async fn a_client_that_takes_nothing_of_an_answer_is_cut() {
    let router = Router::new().route("/", get(|| async { "more than a byte" }));
    // Pings and other bytes do not count as taking it.
    let timeouts = Timeouts { idle: SHORT * 4, ..Timeouts::default() };
    let (port, shutdown, server) = serve(router, timeouts);
    let mut socket = connect(port).await;
    // SETTINGS with a window of one byte for each stream; HEADERS for GET /.
    let settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\x01";
    let request = b"\0\0\x06\x01\x05\0\0\0\x01\x82\x84\x86\x41\x01h";
    socket.write_all(&[settings.as_slice(), request].concat()).await.expect("sent");
    let ping = b"\0\0\x08\x06\0\0\0\0\0........";
    let cut = async {
        let mut answer = [0; 4096];
        loop {
            tokio::select! {
                read = socket.read(&mut answer) => match read {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                },
                () = time::sleep(SHORT) => if socket.write_all(ping).await.is_err() { return },
            }
        }
    };
    time::timeout(PATIENCE, cut).await.expect("it is cut in time");
    shutdown.cancel();
    server.await.expect("no panic");
}

#[tokio::test]
async fn stopping_finishes_requests_and_cuts_what_takes_too_long() {
    let release = Arc::new(Notify::new());
    let (started, mut starts) = mpsc::unbounded_channel();
    let gate = Arc::clone(&release);
    let stuck = started.clone();
    let router = Router::new()
        .route(
            "/waits",
            get(move || async move {
                started.send(()).expect("the test listens");
                gate.notified().await;
                "done"
            }),
        )
        .route(
            "/never",
            get(move || async move {
                stuck.send(()).expect("the test listens");
                std::future::pending::<&str>().await
            }),
        );
    let timeouts = Timeouts { drain: SHORT * 6, ..Timeouts::default() };
    let (port, shutdown, server) = serve(router, timeouts);
    let mut sockets = Vec::new();
    for path in ["/waits", "/never"] {
        let mut socket = connect(port).await;
        let request = format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n");
        socket.write_all(request.as_bytes()).await.expect("sent");
        starts.recv().await.expect("the request has started");
        sockets.push(socket);
    }
    shutdown.cancel();
    release.notify_one();
    let never = sockets.pop().expect("two sockets");
    let waits = sockets.pop().expect("two sockets");
    assert!(read_to_end(waits).await.ends_with("done"));
    assert_eq!(read_to_end(never).await, "");
    time::timeout(PATIENCE, server).await.expect("ends in time").expect("no panic");
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err(), "it no longer listens");
}
