//! Clients that ask for much and read nothing.

use std::{sync::Arc, time::Duration};

use metastore_proto::etcdserverpb::RangeRequest;
use reqwest::Method;
use tokio::{
    io::AsyncWriteExt,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    scene::{BIG, Ready, Scene, Site},
    wire::{Http2, connect, framed, send},
};
use crate::{Result, report::During};

/// Requests in one pipeline, or streams of one connection.
const AT_ONCE: usize = 100;

/// How long the requests may take to be sent: some never are.
const SENDING: Duration = Duration::from_secs(3);

/// Writes to what is watched: their size in bytes, and the time between two.
const HOT_BYTES: usize = 16 << 10;
const HOT_PAUSE: Duration = Duration::from_millis(50);

/// How a client asks.
#[derive(Debug, Clone, Copy)]
enum Way {
    List,
    Watch,
    Pipeline,
    /// A stream takes this many bytes.
    Streams(u32),
    Range(u32),
    RangeStream,
}

const WAYS: [Way; 7] = [
    Way::List,
    Way::Watch,
    Way::Pipeline,
    Way::Streams(0),
    Way::Streams(1),
    Way::Range(1),
    Way::RangeStream,
];

/// What is held open, so that nothing of it is read.
enum Held {
    Socket(#[expect(dead_code, reason = "held for its drop")] tokio::net::TcpStream),
    Streams(
        #[expect(dead_code, reason = "held for its drop")] Arc<Http2>,
        #[expect(dead_code, reason = "held for its drop")] Vec<h2::client::ResponseFuture>,
        #[expect(dead_code, reason = "held for its drop")] Vec<h2::SendStream<bytes::Bytes>>,
    ),
}

/// Asks in every way, and holds on to the connections until it is to stop.
pub async fn run(scene: Scene, ready: Ready) -> Result<()> {
    let mut asking = JoinSet::new();
    for number in 0..scene.size.unread {
        for way in WAYS {
            let site = scene.site(number).clone();
            asking.spawn(async move { ask(way, &site).await });
        }
    }
    let mut held = Vec::new();
    while let Some(asked) = asking.join_next().await {
        held.push(asked??);
        scene.figures.count("clients that never read", 1);
    }
    let _ = ready.send(());
    // What is watched changes, and the watches fall behind.
    while !scene.stop.is_cancelled() {
        let value = "x".repeat(HOT_BYTES);
        // Its fate is no matter here.
        let _ = scene.site(0).endpoint.request(Method::PUT, "/hot/key", value).await;
        sleep(HOT_PAUSE).await;
    }
    drop(held);
    Ok(())
}

async fn ask(way: Way, site: &Site) -> Result<Held> {
    let get = |path: &str| format!("GET /{path} HTTP/1.1\r\nhost: h\r\n\r\n");
    let text = match way {
        Way::List => get(&format!("{BIG}?list")),
        Way::Watch => get("hot/?watch&prefix&revision=2"),
        Way::Pipeline => get(&format!("{BIG}0")).repeat(AT_ONCE),
        Way::Streams(window) => return streams(site, window).await,
        Way::Range(window) => return ranges(site, "/etcdserverpb.KV/Range", window, 2).await,
        Way::RangeStream => return ranges(site, "/etcdserverpb.KV/RangeStream", 0, 4).await,
    };
    let mut socket = connect(site.client).await?;
    // A pipeline stands still before all of it is taken.
    if let Ok(written) = timeout(SENDING, socket.write_all(text.as_bytes())).await {
        written.during("ask without reading")?;
    }
    Ok(Held::Socket(socket))
}

async fn streams(site: &Site, window: u32) -> Result<Held> {
    let http2 = Arc::new(Http2::connect(site.client, window).await?);
    let mut answers = Vec::new();
    for _ in 0..AT_ONCE {
        answers.push(http2.get(&format!("/{BIG}0")).await?);
    }
    Ok(Held::Streams(http2, answers, Vec::new()))
}

/// Everything below [`BIG`], as one message or in pieces.
async fn ranges(site: &Site, path: &str, window: u32, count: usize) -> Result<Held> {
    let http2 = Arc::new(Http2::connect(site.client, window).await?);
    let end = BIG.replace('/', "0");
    let request =
        RangeRequest { key: BIG.into(), range_end: end.into(), ..RangeRequest::default() };
    let (mut answers, mut requests) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let (answer, mut stream) = http2.call(path, false).await?;
        // A member that refuses it at once is right to.
        let _ = send(&mut stream, framed(&request), true).await;
        answers.push(answer);
        requests.push(stream);
    }
    Ok(Held::Streams(http2, answers, requests))
}
