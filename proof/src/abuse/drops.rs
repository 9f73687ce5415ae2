//! Connections that are opened and dropped, in every way.

use std::time::Duration;

use tokio::{io::AsyncWriteExt, task::JoinSet, time::sleep};

use super::{
    scene::{Ready, Scene},
    wire::connect,
};
use crate::Result;

/// Clients that do so at once.
const CLIENTS: u64 = 32;

/// Time between two connections of one client.
const PAUSE: Duration = Duration::from_millis(2);

/// What is sent first. With an odd number the end is a reset.
const BEGINNINGS: [&[u8]; 5] = [
    b"",
    b"PUT /half HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\nhalf of",
    b"GET /half HTT",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
];

/// Opens and drops them until there were enough of them and it is to stop.
pub async fn run(scene: Scene, ready: Ready) -> Result<()> {
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let scene = scene.clone();
        clients.spawn(async move {
            let least = scene.size.drops.div_ceil(CLIENTS);
            let mut number = 0;
            while number < least || !scene.stop.is_cancelled() {
                let site = scene.site(client + number);
                // Every fourth at the peer port.
                let address = if number % 4 == 3 { site.peer } else { site.client };
                drop_one(address, number / 4 + client).await?;
                scene.figures.count("connections dropped", 1);
                number += 1;
                sleep(PAUSE).await;
            }
            Ok::<_, crate::Failure>(())
        });
    }
    let _ = ready.send(());
    while let Some(ended) = clients.join_next().await {
        ended??;
    }
    Ok(())
}

async fn drop_one(address: std::net::SocketAddr, number: u64) -> Result<()> {
    let mut socket = connect(address).await?;
    if number % 2 == 1 {
        socket.set_zero_linger()?;
    }
    // The member may be faster.
    let _ = socket.write_all(BEGINNINGS[number as usize % BEGINNINGS.len()]).await;
    Ok(())
}
