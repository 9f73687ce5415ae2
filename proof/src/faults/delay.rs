//! A proxy that makes a connection slow. (Where the kernel has it, netem delays
//! packets; a proxy does on any kernel.)

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{Result, report::During};

/// Bytes that are taken from a connection at a time.
const PIECE_BYTES: usize = 16 << 10;

/// Pieces that are on their way in one direction; further ones wait in the
/// kernel, as on any slow link.
const PIECES: usize = 256;

/// One slow link. Dropping it closes its connections.
#[derive(Debug)]
pub struct DelayProxy {
    stop: CancellationToken,
}

impl DelayProxy {
    /// Takes connections at `listen` and passes them on to `target`; whatever
    /// is sent arrives so much later.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(listen: SocketAddr, target: SocketAddr, delay: Duration) -> Result<Self> {
        let what = format!("listen on {listen} for a slow link");
        let listener = TcpListener::bind(listen).await.during(what)?;
        let stop = CancellationToken::new();
        tokio::spawn(accept(listener, target, delay, stop.clone()));
        Ok(Self { stop })
    }
}

impl Drop for DelayProxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    delay: Duration,
    stop: CancellationToken,
) {
    let connections = TaskTracker::new();
    while let Some(Ok((connection, _))) = stop.run_until_cancelled(listener.accept()).await {
        let stop = stop.clone();
        connections.spawn(async move {
            // Errors end the connection, which is all that they say.
            let _ = stop.run_until_cancelled(pass(connection, target, delay)).await;
        });
    }
}

async fn pass(connection: TcpStream, target: SocketAddr, delay: Duration) -> io::Result<()> {
    let onward = TcpStream::connect(target).await?;
    connection.set_nodelay(true)?;
    onward.set_nodelay(true)?;
    let (from_client, to_client) = connection.into_split();
    let (from_target, to_target) = onward.into_split();
    tokio::try_join!(carry(from_client, to_target, delay), carry(from_target, to_client, delay))?;
    Ok(())
}

/// Carries bytes in one direction until they end.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    delay: Duration,
) -> io::Result<()> {
    let (sender, mut underway) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES);
    let take = async move {
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            let length = from.read(&mut piece).await?;
            piece.truncate(length);
            if length == 0 || sender.send((Instant::now() + delay, piece)).await.is_err() {
                return io::Result::Ok(());
            }
        }
    };
    let bring = async move {
        while let Some((at, piece)) = underway.recv().await {
            sleep_until(at).await;
            to.write_all(&piece).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(take, bring)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_arrive_late_and_whole() {
        let target = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let place = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let listen = place.local_addr().expect("an address");
        drop(place);
        let delay = Duration::from_millis(50);
        let to = target.local_addr().expect("an address");
        let proxy = DelayProxy::start(listen, to, delay).await.expect("a proxy");
        let start = Instant::now();
        let mut client = TcpStream::connect(listen).await.expect("a connection");
        client.write_all(b"ping").await.expect("sent");
        let (mut server, _) = target.accept().await.expect("passed on");
        let mut received = [0; 4];
        server.read_exact(&mut received).await.expect("four bytes");
        assert_eq!(&received, b"ping");
        assert!(start.elapsed() >= delay);
        server.write_all(b"pong").await.expect("sent");
        client.read_exact(&mut received).await.expect("four bytes");
        assert!(start.elapsed() >= 2 * delay);
        drop(proxy);
        assert_eq!(client.read(&mut received).await.unwrap_or(0), 0, "closed with the proxy");
    }
}
