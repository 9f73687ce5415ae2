//! Watchers by the thousand, who are told nothing until the end.

use std::{io, sync::Arc, time::Duration};

use metastore_proto::etcdserverpb::{
    WatchCreateRequest, WatchRequest, watch_request::RequestUnion,
};
use reqwest::Method;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use super::{
    scene::{Ready, Scene},
    wire::{Http2, connect, framed, release, send},
};
use crate::{Failure, Result, report::During};

/// What is watched, and the key that is written in the end.
const PREFIX: &str = "idle/";
const BELL: &str = "idle/bell";

/// Streams of one connection.
const STREAMS: u64 = 250;

/// Watches that are opened at once.
const OPENING: usize = 64;

/// How long until a watch is there, and until its event has come.
const LIMIT: Duration = Duration::from_secs(60);

/// Half of the watchers have connections of their own, half share some.
pub async fn run(scene: Scene, ready: Ready) -> Result<()> {
    let count = scene.size.watchers;
    let there = Arc::new(Semaphore::new(0));
    let opening = Arc::new(Semaphore::new(OPENING));
    let mut watchers = JoinSet::new();
    for number in 0..count / 2 {
        let place = Arc::clone(&opening).acquire_owned().await?;
        let (address, there) = (scene.site(number).client, Arc::clone(&there));
        watchers.spawn(async move {
            let mut socket = connect(address).await?;
            let request = format!("GET /{PREFIX}?watch&prefix HTTP/1.1\r\nhost: h\r\n\r\n");
            socket.write_all(request.as_bytes()).await.during("ask for a watch")?;
            until(&mut socket, b"\"events\":[]").await.during("open a watch")?;
            drop(place);
            there.add_permits(1);
            until(&mut socket, BELL.as_bytes()).await.during("wait for an event")
        });
    }
    let streams = count - count / 2;
    for connection in 0..streams.div_ceil(STREAMS) {
        let http2 = Arc::new(Http2::connect(scene.site(connection).client, 64 << 10).await?);
        for _ in 0..STREAMS.min(streams - connection * STREAMS) {
            let place = Arc::clone(&opening).acquire_owned().await?;
            let (http2, there) = (Arc::clone(&http2), Arc::clone(&there));
            watchers.spawn(async move {
                stream(&http2, move || {
                    drop(place);
                    there.add_permits(1);
                })
                .await
            });
        }
    }
    let all = there.acquire_many(u32::try_from(count).unwrap_or(u32::MAX));
    let all = timeout(LIMIT, all).await;
    if all.is_err() {
        return Err(first_failure(&mut watchers, there.available_permits()));
    }
    scene.figures.count("idle watchers", count);
    // Nobody waits for it any more when the run has failed.
    let _ = ready.send(());
    scene.stop.cancelled().await;
    ring(&scene, &mut watchers).await
}

/// Every watcher is told of one write: they were all there to the end.
async fn ring(scene: &Scene, watchers: &mut JoinSet<Result<()>>) -> Result<()> {
    let reply = scene.site(0).endpoint.request(Method::PUT, &format!("/{BELL}"), "ding").await;
    let status = reply.during("ring the bell")?.status;
    if status != 204 {
        return Err(Failure::failed(format!("a write for the watchers was answered {status}")));
    }
    let told = timeout(LIMIT, async {
        while let Some(told) = watchers.join_next().await {
            match told? {
                Ok(()) => scene.figures.count("watchers told", 1),
                Err(failure) => scene.figures.violation(format!("an idle watcher: {failure}")),
            }
        }
        Ok(())
    });
    told.await.unwrap_or_else(|_| {
        let missing = watchers.len();
        scene.figures.violation(format!("{missing} idle watchers were not told of a write"));
        Ok(())
    })
}

fn first_failure(watchers: &mut JoinSet<Result<()>>, there: usize) -> Failure {
    let ended = watchers.try_join_next();
    Failure::failed(format!("only {there} watchers could begin; one says {ended:?}"))
}

/// Reads until these bytes have come.
async fn until(socket: &mut TcpStream, wanted: &[u8]) -> io::Result<()> {
    let mut text = Vec::new();
    while !text.windows(wanted.len()).any(|window| window == wanted) {
        // What was looked at is of no use but for its end.
        text.drain(..text.len().saturating_sub(wanted.len()));
        if socket.read_buf(&mut text).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// One watch on one stream; `opened` is called once it is there.
async fn stream(http2: &Http2, opened: impl FnOnce()) -> Result<()> {
    let (answer, mut requests) = http2.call("/etcdserverpb.Watch/Watch", false).await?;
    let create = WatchCreateRequest {
        key: PREFIX.into(),
        range_end: "idle0".into(),
        ..WatchCreateRequest::default()
    };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    if !send(&mut requests, framed(&create), false).await {
        return Err(Failure::failed("a watch cannot be asked for"));
    }
    let mut body = answer.await.during("open a stream")?.into_body();
    let mut opened = Some(opened);
    loop {
        let data = body.data().await.ok_or_else(|| Failure::failed("a stream has ended"))?;
        let data = data.during("read a stream")?;
        release(&mut body, data.len());
        if let Some(opened) = opened.take() {
            opened();
        }
        if data.windows(BELL.len()).any(|window| window == BELL.as_bytes()) {
            return Ok(());
        }
    }
}
