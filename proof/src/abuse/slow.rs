//! Connections that send byte by byte, or begin and say nothing more.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    scene::{Ready, Scene, Site},
    wire::{Called, Http2, called, connect, framed_bytes, send},
};
use crate::{Failure, Result, report::During};

/// Time between two bytes.
const PAUSE: Duration = Duration::from_millis(1_500);

/// By when a member must have had enough: the times for headers and bodies are
/// half a minute, and two pings take forty seconds.
const LIMIT: Duration = Duration::from_secs(75);

/// Connections that are begun at once.
const OPENING: usize = 64;

/// How a connection is slow.
#[derive(Debug, Clone, Copy)]
enum Way {
    Headers,
    PeerHeaders,
    Body,
    Message,
    /// HTTP/2 begins, and pings are not answered.
    Preface,
    PeerPreface,
    /// A request to join, which anybody can send.
    Join,
}

const WAYS: [Way; 7] = [
    Way::Headers,
    Way::Body,
    Way::PeerHeaders,
    Way::Preface,
    Way::Message,
    Way::PeerPreface,
    Way::Join,
];

/// Begins them all, and waits until the members have cut each.
pub async fn run(scene: Scene, ready: Ready) -> Result<()> {
    let opening = Arc::new(Semaphore::new(OPENING));
    let mut connections = JoinSet::new();
    for number in 0..scene.size.slow {
        let place = Arc::clone(&opening).acquire_owned().await?;
        let way = WAYS[number as usize % WAYS.len()];
        let site = scene.site(number / WAYS.len() as u64).clone();
        connections.spawn(async move {
            let cut = timeout(LIMIT, cut(way, &site, || drop(place))).await;
            (way, cut.unwrap_or_else(|_| Err(Failure::failed(format!("is there after {LIMIT:?}")))))
        });
    }
    // All have begun.
    let begun = opening.acquire_many(OPENING as u32).await?;
    scene.figures.count("slow connections", scene.size.slow);
    let _ = ready.send(());
    drop(begun);
    scene.stop.cancelled().await;
    while let Some(ended) = connections.join_next().await {
        match ended? {
            (_, Ok(())) => scene.figures.count("slow connections cut", 1),
            (way, Err(failure)) => {
                scene.figures.violation(format!("{way:?} byte by byte: {failure}"));
            }
        }
    }
    Ok(())
}

/// Returns once the member has cut the connection or refused the request.
async fn cut(way: Way, site: &Site, begun: impl FnOnce()) -> Result<()> {
    const HEADERS: &[u8] = b"GET /slow HTTP/1.1\r\nhost: ";
    const BODY: &[u8] = b"PUT /slow HTTP/1.1\r\nhost: h\r\ncontent-length: 10000\r\n\r\n";
    const JOIN: &[u8] = b"POST /raft/join HTTP/1.1\r\nhost: h\r\ncontent-length: 10000\r\n\r\n";
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    match way {
        Way::Headers => trickle(site.client, HEADERS, true, begun).await,
        Way::PeerHeaders => trickle(site.peer, HEADERS, true, begun).await,
        Way::Body => trickle(site.client, BODY, true, begun).await,
        Way::Join => trickle(site.peer, JOIN, true, begun).await,
        Way::Preface => trickle(site.client, PREFACE, false, begun).await,
        Way::PeerPreface => trickle(site.peer, PREFACE, false, begun).await,
        Way::Message => message(site.client, begun).await,
    }
}

/// Sends the beginning at once, then letter by letter, or nothing more.
async fn trickle(
    address: SocketAddr,
    beginning: &[u8],
    goes_on: bool,
    begun: impl FnOnce(),
) -> Result<()> {
    let mut socket = connect(address).await?;
    socket.write_all(beginning).await.during("begin")?;
    begun();
    if !goes_on {
        drain(&mut socket).await;
        return Ok(());
    }
    let (mut reading, mut writing) = socket.split();
    let mut answer = [0; 64];
    loop {
        tokio::select! {
            // An answer before the end of the request is a refusal.
            _ = reading.read(&mut answer) => return Ok(()),
            () = sleep(PAUSE) => if writing.write_all(b"x").await.is_err() { return Ok(()) },
        }
    }
}

async fn drain(socket: &mut TcpStream) {
    let mut bytes = [0; 4096];
    while !matches!(socket.read(&mut bytes).await, Ok(0) | Err(_)) {}
}

/// A gRPC message byte by byte, on a connection that is well otherwise.
async fn message(address: SocketAddr, begun: impl FnOnce()) -> Result<()> {
    let http2 = Http2::connect(address, 64 << 10).await?;
    let (answer, mut request) = http2.call("/etcdserverpb.KV/Put", false).await?;
    let head = framed_bytes(&[0; 10_000], false).slice(..5);
    if !send(&mut request, head, false).await {
        return Err(Failure::failed("a message cannot be begun"));
    }
    begun();
    let trickle = async {
        loop {
            sleep(PAUSE).await;
            if !send(&mut request, Bytes::from_static(b"x"), false).await {
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        refused = called(answer) => match refused {
            Called::Status(0, _) => Err(Failure::failed("half a message was taken for one")),
            _ => Ok(()),
        },
        () = trickle => Ok(()),
    }
}
