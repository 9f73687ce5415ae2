//! Bodies over every limit, endless, packed, and many at once just at the limit.

use std::{io::Write, sync::Arc, time::Duration};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
    time::timeout,
};

use super::{
    scene::{Ready, Scene, Site},
    wire::{Called, Http2, called, connect, framed_bytes, send, status},
};
use crate::{Failure, Result, report::During};

/// The default of `--max-request-bytes`.
const LIMIT_BYTES: usize = 3 << 19;

/// What a bomb becomes, in bytes.
const BOMB_BYTES: usize = 100 << 20;

/// Clients of each kind at once.
const CLIENTS: u64 = 8;

/// Bodies at the limit that are in memory at once: twice what fits.
const AT_THE_LIMIT: u64 = 2 * (256 << 20) / LIMIT_BYTES as u64;

/// More than any answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Time between two requests of one client.
const PAUSE: Duration = Duration::from_millis(50);

/// Sends them again and again until it is to stop.
pub async fn run(scene: Scene, ready: Ready) -> Result<()> {
    let bomb = framed_bytes(&bomb().during("pack a bomb")?, true);
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        for kind in 0..4 {
            let (scene, bomb) = (scene.clone(), bomb.clone());
            clients.spawn(async move {
                // Each at least once.
                loop {
                    let site = scene.site(number).clone();
                    let refused = timeout(PATIENCE, refused(kind, &site, &bomb)).await;
                    match refused.unwrap_or_else(|_| Err(Failure::failed("no answer in time"))) {
                        Ok(name) => scene.figures.count(name, 1),
                        Err(failure) => scene.figures.violation(format!("huge body: {failure}")),
                    }
                    if timeout(PAUSE, scene.stop.cancelled()).await.is_ok() {
                        return;
                    }
                }
            });
        }
    }
    at_the_limit(&scene, ready).await?;
    while let Some(ended) = clients.join_next().await {
        ended?;
    }
    Ok(())
}

fn bomb() -> std::io::Result<Vec<u8>> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    let zeros = vec![0; 1 << 20];
    for _ in 0..BOMB_BYTES / zeros.len() {
        packed.write_all(&zeros)?;
    }
    packed.finish()
}

/// Sends one body that must be refused; what to count it as.
async fn refused(kind: u64, site: &Site, bomb: &Bytes) -> Result<&'static str> {
    match kind {
        0 => {
            let mut socket = connect(site.client).await?;
            let head = b"PUT /huge HTTP/1.1\r\nhost: h\r\ncontent-length: 1000000000000\r\n\r\n";
            socket.write_all(head).await.during("send a head")?;
            match status(&mut socket).await {
                Some(413) => Ok("huge bodies refused unread"),
                other => Err(Failure::failed(format!("a terabyte was answered {other:?}"))),
            }
        }
        1 => endless(site).await,
        2 => {
            let over = framed_bytes(&[0; 64], false);
            let mut head = over.to_vec();
            head[1..5].copy_from_slice(&u32::to_be_bytes(1 << 30));
            match call(site, head.into(), false).await? {
                Called::Status(8, _) => Ok("huge messages refused"),
                other => Err(Failure::failed(format!("a gigabyte was answered {other:?}"))),
            }
        }
        _ => match call(site, bomb.clone(), true).await? {
            Called::Status(8 | 11, _) => Ok("gzip bombs refused"),
            other => Err(Failure::failed(format!("a bomb was answered {other:?}"))),
        },
    }
}

async fn call(site: &Site, data: Bytes, compressed: bool) -> Result<Called> {
    let http2 = Http2::connect(site.client, 64 << 10).await?;
    let (answer, mut request) = http2.call("/etcdserverpb.KV/Put", compressed).await?;
    // It may be refused before all of it is taken.
    let (_, called) = tokio::join!(send(&mut request, data, true), called(answer));
    Ok(called)
}

/// Chunks without an end, until they are refused.
async fn endless(site: &Site) -> Result<&'static str> {
    let mut socket = connect(site.client).await?;
    let head = b"PUT /endless HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
    socket.write_all(head).await.during("send a head")?;
    let chunk = [b"10000\r\n".as_slice(), &[b'x'; 0x1_0000], b"\r\n"].concat();
    let (mut reading, mut writing) = socket.split();
    let mut answer = [0; 12];
    let endless = async { while writing.write_all(&chunk).await.is_ok() {} };
    tokio::select! {
        read = reading.read_exact(&mut answer) => {
            read.during("read the answer to an endless body")?;
        }
        () = endless => {
            reading.read_exact(&mut answer).await.during("read the answer after the cut")?;
        }
    }
    match &answer[9..] {
        b"413" | b"429" => Ok("endless bodies refused"),
        other => Err(Failure::failed(format!("endless: {}", other.escape_ascii()))),
    }
}

/// More bodies than there is memory for, each complete but for its last byte:
/// some are refused, the others stand until they are to stop.
async fn at_the_limit(scene: &Scene, ready: Ready) -> Result<()> {
    let body = Bytes::from(vec![b'x'; LIMIT_BYTES - 1]);
    let mut sending = JoinSet::new();
    let site = scene.site(0);
    let there = Arc::new(tokio::sync::Semaphore::new(0));
    for _ in 0..AT_THE_LIMIT {
        let (address, body, stop) = (site.client, body.clone(), scene.stop.clone());
        let there = Arc::clone(&there);
        sending.spawn(async move {
            let mut socket = connect(address).await?;
            let head =
                format!("PUT /limit HTTP/1.1\r\nhost: h\r\ncontent-length: {LIMIT_BYTES}\r\n\r\n");
            socket.write_all(head.as_bytes()).await.during("send a head")?;
            let (mut reading, mut writing) = socket.split();
            let mut answer = [0; 12];
            let stands = async {
                let sent = writing.write_all(&body).await;
                there.add_permits(1);
                stop.cancelled().await;
                sent
            };
            let refused = tokio::select! {
                read = reading.read_exact(&mut answer) => Some(read),
                _ = stands => None,
            };
            if refused.is_some() {
                there.add_permits(1);
            }
            Ok(refused.is_some_and(|read| read.is_ok() && &answer[9..] == b"429"))
        });
    }
    let all = there.acquire_many(AT_THE_LIMIT as u32);
    timeout(PATIENCE, all).await.during("send bodies at the limit")??.forget();
    let _ = ready.send(());
    scene.stop.cancelled().await;
    while let Some(ended) = sending.join_next().await {
        let ended: Result<bool> = ended?;
        scene.figures.count("bodies at the limit", 1);
        if ended? {
            scene.figures.count("of these refused with 429", 1);
        }
    }
    Ok(())
}
